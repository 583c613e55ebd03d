"""Presets of the supervised trainer."""
