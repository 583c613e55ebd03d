"""Configurations: their dataclasses, how they are read, and the presets."""
