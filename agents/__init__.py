"""Policies that choose attack strategies."""

from agents import reinforce, static  # noqa: F401 - they register their policies
from agents.base import POLICIES
from agents.make import Context, make
from astra_env.learner.protocol import Policy

__all__ = ["POLICIES", "Context", "Policy", "make"]
