"""Policies that do not learn: fixed, random and scheduled attacks."""

from typing import Any

import numpy as np

from agents.base import POLICIES, batch_size
from astra_env.errors import ConfigError
from astra_env.randomness import random_state, set_random_state
from astra_env.strategy import StrategySpace, parse_number


@POLICIES.register("fixed")
class Fixed:
    """The same attack always; by default ACL's 8/255 in 5 steps of 2/255 (Jiang et al. 2020).

    Args:
        epsilon, steps, step_size: values on the grids, as numbers in [0, 1] pixel units or fractions.
        space: the grids.
    """

    accepts_tensors = True  # only the number of observations matters

    def __init__(
        self,
        epsilon: float | str = "8/255",
        steps: int = 5,
        step_size: float | str = "2/255",
        space: StrategySpace | None = None,
    ) -> None:
        space = space if space is not None else StrategySpace()
        numbers = parse_number("epsilon", epsilon), steps, parse_number("step_size", step_size)
        self.action = np.array(space.encode(*numbers), dtype=np.int64)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Return the one action for every observation: (N, 3), or (3,) for a single one."""
        count = batch_size(observation)
        return self.action.copy() if count is None else np.tile(self.action, (count, 1)), state


@POLICIES.register("random")
class Random:
    """Every grid value equally likely, independently for each observation.

    Args:
        space: the grids.
        seed: of the policy's own generator.
    """

    accepts_tensors = True  # only the number of observations matters

    def __init__(self, space: StrategySpace | None = None, seed: int = 0) -> None:
        self.space = space if space is not None else StrategySpace()
        self.random = np.random.default_rng(seed)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Draw actions: (N, 3), or (3,) for a single observation. ``deterministic`` makes no difference."""
        count = batch_size(observation)
        shape = (3,) if count is None else (count, 3)
        return self.random.integers(0, self.space.sizes, shape), state

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator."""
        return random_state(self.random)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the random numbers exactly where ``state`` was taken."""
        set_random_state(self.random, state)


@POLICIES.register("scheduled")
class Scheduled:
    """A hand-made curriculum: the grid indices move linearly from a first to a last attack over the training.

    Args:
        start: (epsilon, steps, step_size) at the first step, values on the grids.
        end: the same at the last step.
        space: the grids.
        total_steps: length of the training in steps; one call of ``predict`` is one step.
    """

    accepts_tensors = True  # only the number of observations matters

    def __init__(
        self,
        start: tuple[float | str, int, float | str] = ("3/255", 3, "1/255"),
        end: tuple[float | str, int, float | str] = ("8/255", 5, "2/255"),
        space: StrategySpace | None = None,
        total_steps: int = 1000,
    ) -> None:
        space = space if space is not None else StrategySpace()
        if total_steps < 1:
            raise ConfigError(f"total_steps: expected an integer >= 1, got {total_steps}")
        self.start, self.end = (np.array(_encode(space, attack)) for attack in (start, end))
        self.total_steps = total_steps
        self.calls = 0

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Return the attack of the present step for every observation, and move on by one step."""
        progress = min(1.0, self.calls / max(1, self.total_steps - 1))
        self.calls += 1
        action = np.rint(self.start + progress * (self.end - self.start)).astype(np.int64)
        count = batch_size(observation)
        return action if count is None else np.tile(action, (count, 1)), state

    def state_dict(self) -> dict[str, Any]:
        """Return how far the curriculum is."""
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the curriculum where ``state`` was taken."""
        self.calls = int(state["calls"])


def _encode(space: StrategySpace, attack: tuple[float | str, int, float | str]) -> tuple[int, int, int]:
    epsilon, steps, step_size = attack
    return space.encode(parse_number("epsilon", epsilon), steps, parse_number("step_size", step_size))
