"""Stable-Baselines3 in the environments of this package; the only room that imports it and sb3-contrib.

Its parts are imported when first asked for, so that reading a configuration does not load Stable-Baselines3.
"""

import importlib
from typing import TYPE_CHECKING, Any

from agents.sb3.algorithms import ALGORITHMS, Algorithm
from agents.sb3.config import AgentConfig

if TYPE_CHECKING:
    from agents.sb3.model import ResNetExtractor, RolloutCallback, make_model, trained
    from agents.sb3.vec_env import InstanceVecEnv, make_instance_env, make_single_env, make_vec_env

__all__ = [
    "ALGORITHMS",
    "AgentConfig",
    "Algorithm",
    "InstanceVecEnv",
    "ResNetExtractor",
    "RolloutCallback",
    "make_instance_env",
    "make_model",
    "make_single_env",
    "make_vec_env",
    "trained",
]
_HOMES = dict.fromkeys(("ResNetExtractor", "RolloutCallback", "make_model", "trained"), "model")
_HOMES |= dict.fromkeys(("InstanceVecEnv", "make_instance_env", "make_single_env", "make_vec_env"), "vec_env")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
