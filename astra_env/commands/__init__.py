"""The command lines: one module a command, each with its ``main``."""
