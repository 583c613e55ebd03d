"""Environments on the tiny preset."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest

import astra_env
from astra_env.envs import AttackStrategyEnv, InstanceAttackStrategyVectorEnv

SINGLE = "astra_env/AttackStrategy-v0"
VECTOR = "astra_env/InstanceAttackStrategy-v0"
assert astra_env.__version__


@pytest.fixture
def make_single() -> Callable[..., AttackStrategyEnv]:
    """Return a function that makes AttackStrategy-v0 on ``tiny``; keywords are dotted overrides with ``__``."""

    def make(render_mode: str | None = None, **overrides: Any) -> AttackStrategyEnv:
        dotted = {name.replace("__", "."): value for name, value in overrides.items()}
        return gym.make(SINGLE, config="tiny", overrides=dotted, render_mode=render_mode).unwrapped

    return make


@pytest.fixture
def make_vector() -> Callable[..., InstanceAttackStrategyVectorEnv]:
    """Return a function that makes InstanceAttackStrategy-v0 on ``tiny`` with 8 views."""

    def make(num_envs: int = 8, arguments: dict[str, Any] | None = None, **overrides: Any) -> Any:
        dotted = {name.replace("__", "."): value for name, value in overrides.items()}
        return gym.make_vec(
            VECTOR,
            num_envs=num_envs,
            vectorization_mode="vector_entry_point",
            config="tiny",
            overrides=dotted,
            **(arguments or {}),
        )

    return make
