"""Policies that choose attack strategies."""

from agents import reinforce, static  # noqa: F401 - they register their policies
from agents.base import POLICIES, Context, Policy, make

__all__ = ["POLICIES", "Context", "Policy", "make"]
