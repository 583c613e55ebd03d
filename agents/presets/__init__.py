"""Presets of train_sb3.py."""
