"""Measuring a training step: time per phase, memory and arithmetic, against the step as the official code does it."""
