"""Figures; nothing outside this package imports matplotlib."""
