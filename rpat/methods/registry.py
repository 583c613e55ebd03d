"""Methods by name."""

from astra_env.registry import Registry
from rpat.methods.base import Method

METHODS: Registry[type[Method]] = Registry("method")
"""Classes derived from :class:`rpat.methods.base.Method`; ``module:MyMethod`` is imported."""
