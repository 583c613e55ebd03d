"""An independent copy of an environment that continues identically, through whatever wrappers are around it."""

import copy
from typing import Any, TypeVar

import gymnasium as gym
from gymnasium.vector import SyncVectorEnv, VectorEnv

from astra_env.envs.training import TrainingEnv
from astra_env.errors import InputError

Environment = TypeVar("Environment", bound=gym.Env[Any, Any] | VectorEnv[Any, Any, Any])


def fork(env: Environment) -> Environment:
    """Return an independent copy of ``env``, wrappers and their state included, that continues identically.

    Args:
        env: either environment of this package, wrapped or not, or a ``SyncVectorEnv`` of them.

    Raises:
        InputError: for another environment, or a wrapper that holds what cannot be copied, such as a window.
    """
    base: Any = env.unwrapped
    inner: list[Any] = [entry.unwrapped for entry in base.envs] if isinstance(base, SyncVectorEnv) else [base]
    for entry in inner:
        if not isinstance(entry, TrainingEnv):
            raise InputError(f"env: expected an environment of astra_env, got {type(entry).__name__}; it cannot fork")
    copied = {id(entry): entry.fork() for entry in inner}
    try:
        return copy.deepcopy(env, copied)
    except (TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"env: a wrapper of {env} cannot be copied ({error}); fork env.unwrapped instead") from error
