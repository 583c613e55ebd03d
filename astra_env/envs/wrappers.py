"""The same choice of attack as other action spaces, for algorithms that do not take MultiDiscrete."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from astra_env.errors import InputError


class DiscreteStrategy(
    gym.ActionWrapper[np.ndarray, np.int64, np.ndarray],
    RecordConstructorArgs,  # type: ignore[type-var]
):
    """Numbers every attack of the grids: ``Discrete(13 * 12 * 5)``, the step size counting fastest (for DQN).

    Raises:
        InputError: when the environment's actions are not MultiDiscrete.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ActionWrapper.__init__(self, env)
        self._sizes = _grid_sizes(env)
        self.action_space = spaces.Discrete(int(np.prod(self._sizes)))  # type: ignore[assignment]

    def action(self, action: np.int64) -> np.ndarray:
        """Return the grid indices int64 (3,) of attack number ``action``; raises InputError outside the range."""
        number = np.asarray(action)
        if number.size != 1 or not np.issubdtype(number.dtype, np.integer) or not 0 <= number.item() < self._count:
            raise InputError(f"action: expected an integer 0..{self._count - 1}, got {action!r}")
        return np.array(np.unravel_index(int(number.item()), self._sizes), dtype=np.int64)

    @property
    def _count(self) -> int:
        return int(np.prod(self._sizes))


class BoxStrategy(
    gym.ActionWrapper[np.ndarray, np.ndarray, np.ndarray],
    RecordConstructorArgs,  # type: ignore[type-var]
):
    """Cuts [-1, 1] into one piece of equal length per value of a grid: ``Box(-1, 1, (3,))`` (for SAC, TD3).

    Raises:
        InputError: when the environment's actions are not MultiDiscrete.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ActionWrapper.__init__(self, env)
        self._sizes = np.array(_grid_sizes(env))
        self.action_space = spaces.Box(-1.0, 1.0, (len(self._sizes),), np.float32)  # type: ignore[assignment]

    def action(self, action: np.ndarray) -> np.ndarray:
        """Return the grid indices int64 (3,); values outside [-1, 1] count as its ends, NaN raises InputError."""
        values = np.asarray(action, dtype=np.float64)
        if values.shape != self._sizes.shape or not np.isfinite(values).all():
            raise InputError(f"action: expected {len(self._sizes)} finite numbers in [-1, 1], got {action!r}")
        return np.clip(((values + 1) / 2 * self._sizes).astype(np.int64), 0, self._sizes - 1)


def _grid_sizes(env: gym.Env[Any, Any]) -> tuple[int, ...]:
    if not isinstance(env.action_space, spaces.MultiDiscrete):
        raise InputError(f"env: expected MultiDiscrete actions, as AttackStrategy-v0 has, got {env.action_space}")
    return tuple(int(size) for size in env.action_space.nvec)
