"""Presets of evaluations, read by name through :mod:`astra_env.config.reading`."""
