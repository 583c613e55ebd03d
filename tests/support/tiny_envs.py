"""Environments on the tiny preset, made as users make them; keywords are dotted overrides with ``__`` for the dot."""

from typing import Any

import gymnasium as gym

from astra_env.envs import AttackStrategyEnv, InstanceAttackStrategyVectorEnv
from astra_env.registration import register_envs

SINGLE = "astra_env/AttackStrategy-v0"
VECTOR = "astra_env/InstanceAttackStrategy-v0"
register_envs()


def make_single(render_mode: str | None = None, **overrides: Any) -> AttackStrategyEnv:
    """Return AttackStrategy-v0 without wrappers."""
    return gym.make(SINGLE, config="tiny", overrides=_dotted(overrides), render_mode=render_mode).unwrapped


def make_vector(
    num_envs: int = 8, arguments: dict[str, Any] | None = None, **overrides: Any
) -> InstanceAttackStrategyVectorEnv:
    """Return InstanceAttackStrategy-v0 with 8 views; ``arguments`` are further ones of the environment."""
    mode = "vector_entry_point"
    more = {"config": "tiny", "overrides": _dotted(overrides), **(arguments or {})}
    return gym.make_vec(VECTOR, num_envs=num_envs, vectorization_mode=mode, **more)


def _dotted(overrides: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in overrides.items()}
