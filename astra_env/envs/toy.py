"""AttackStrategyToy-v0: a learning-curve model of an adversarial training, with a best strategy that is known."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from astra_env.errors import ConfigError, InputError

EPSILON = (2, 4, 8, 16, 24, 32)
"""Radii in 1/255."""
STEPS = (0, 1, 2, 5, 10)
STEP_SIZE = (0.5, 1.0, 1.5, 2.0)
"""Multiples of epsilon / steps."""
CHUNK_PRICE = 10
"""Units of budget that 1 F per view of a chunk costs: a chunk has 10 minibatches."""
PEAK = 9.0
"""Robustness that the best chunk adds, before rounding."""


class AttackStrategyToyEnv(gym.Env[np.ndarray, np.ndarray]):
    """Choose the attacks of a training that is modelled by a table: for tests, tuning and lessons.

    ## Description
    Robustness is a whole number from 0 to ``LEVELS``. A chunk of training raises it by what its attack teaches at the
    present robustness, and costs what it would cost: 6 F for training plus 2 F a step plus 1 F for the attack. What an
    attack teaches depends on how far it reaches, ``min(epsilon, steps * step size)``, against what the network can
    learn from now: the best reach grows with robustness. More steps find it better but cost more; steps that overshoot
    the ball waste it. So the three parameters interact, the best attack moves, and the strongest is not the best.

    ## Action space
    `MultiDiscrete([6, 5, 4])`: epsilon (2, 4, 8, 16, 24, 32)/255, steps 0, 1, 2, 5, 10, step size .5, 1, 1.5, 2 times
    epsilon / steps.

    ## Observation space
    `Box(0, 1, (4,))`, float32: share of the budget left, robustness / LEVELS, price of the last chunk / the dearest
    one, and what it taught / PEAK.

    ## Rewards
    What the chunk added to robustness / LEVELS. Undiscounted rewards add up to the final robustness.

    ## Starting state
    No robustness, the whole budget.

    ## Episode end
    *Termination* when the budget is used up; the last chunk may overdraw it, as a training's last step may.

    ## Arguments
    * `budget`: F per view of the whole training; default 1200, which pays for 17 chunks of one-step attacks of 7 F.

    `optimum()` returns the best return there is and a strategy that reaches it.
    """

    LEVELS: ClassVar[int] = 100
    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]

    def __init__(self, budget: int = 1200, render_mode: str | None = None) -> None:
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise ConfigError(f"budget: expected an integer >= 1 (F per view), got {budget!r}")
        self.render_mode = render_mode
        self.budget = budget
        self.action_space = spaces.MultiDiscrete([len(EPSILON), len(STEPS), len(STEP_SIZE)])  # type: ignore[assignment]
        self.observation_space = spaces.Box(0.0, 1.0, (4,), np.float32)
        self._shape = (len(EPSILON), len(STEPS), len(STEP_SIZE))
        self.prices = _prices()
        self.gains = _gains(self.LEVELS)
        self._dearest = float(self.prices.max())
        self._table, self._costs = self.gains.tolist(), self.prices.tolist()
        self.left = 0
        self.robustness = 0
        self._over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a training."""
        super().reset(seed=seed)
        self.left, self.robustness, self._over = self.budget, 0, False
        return self._observation(0, 0), self._info(0)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Train for a chunk under one attack; raises InputError for an action outside the grids."""
        if self._over:
            raise ResetNeeded("the episode is over or has not begun: call reset() before step()")
        epsilon, steps, size = action
        rows, columns, depth = self._shape
        if not (0 <= epsilon < rows and 0 <= steps < columns and 0 <= size < depth):
            raise InputError(f"action: expected indices below {self._shape}, got {tuple(map(int, action))}")
        index = int((epsilon * columns + steps) * depth + size)
        gain, price = self._table[self.robustness][index], self._costs[index]
        self.robustness += gain
        self.left -= price
        self._over = self.left <= 0
        return self._observation(price, gain), gain / self.LEVELS, self._over, False, self._info(price)

    def optimum(self) -> tuple[float, list[tuple[int, int, int]]]:
        """Return the largest return there is and the actions of a training that reaches it, by dynamic programming."""
        value = np.zeros((self.budget + 1, self.LEVELS + 1))
        best = np.zeros((self.budget + 1, self.LEVELS + 1), dtype=np.int64)
        robust = np.arange(self.LEVELS + 1)[:, None] + self.gains
        for left in range(1, self.budget + 1):
            after = np.maximum(left - self.prices, 0)
            totals = self.gains + value[after[None, :], robust]
            best[left], value[left] = totals.argmax(1), totals.max(1)
        left, robustness, actions = self.budget, 0, []
        while left > 0:
            index = int(best[left, robustness])
            actions.append(tuple(int(part) for part in np.unravel_index(index, self._shape)))
            left, robustness = left - int(self.prices[index]), robustness + int(self.gains[robustness, index])
        return float(value[self.budget, 0]) / self.LEVELS, actions  # type: ignore[return-value]

    def best_static(self) -> tuple[float, tuple[int, int, int]]:
        """Return the largest return of one attack kept throughout, and the attack."""
        returns = []
        for index, price in enumerate(self._costs):
            left, robustness = self.budget, 0
            while left > 0:
                left, robustness = left - price, robustness + self._table[robustness][index]
            returns.append(robustness)
        found = int(np.argmax(returns))
        action = tuple(int(part) for part in np.unravel_index(found, self._shape))
        return returns[found] / self.LEVELS, action  # type: ignore[return-value]

    def _observation(self, price: int, gain: int) -> np.ndarray:
        left = max(0, self.left) / self.budget
        values = (left, self.robustness / self.LEVELS, price / self._dearest, gain / PEAK)
        return np.array(values, dtype=np.float32)

    def _info(self, price: int) -> dict[str, Any]:
        return {"compute_spent": self.budget - self.left, "price": price, "robustness": self.robustness}


def _prices() -> np.ndarray:
    """Return the price of a chunk under each action, in F per view: int64 (120,)."""
    steps = np.array(STEPS)[None, :, None]
    price = CHUNK_PRICE * (6 + 2 * steps + (steps > 0))
    return np.broadcast_to(price, (len(EPSILON), len(STEPS), len(STEP_SIZE))).reshape(-1).astype(np.int64)


def _gains(levels: int) -> np.ndarray:
    """Return what a chunk under each action adds at each robustness: int64 (levels + 1, 120)."""
    epsilon = np.array(EPSILON, dtype=float)[:, None, None]
    steps = np.array(STEPS, dtype=float)[None, :, None]
    travelled = np.array(STEP_SIZE)[None, None, :] * epsilon
    reach = np.where(steps > 0, np.minimum(epsilon, travelled), 0.0)
    # Each further step halves what the attack misses; beyond the edge of the ball every step is partly wasted.
    quality = np.where(steps > 0, 1 - 0.5 ** (1 + steps), 0.5)
    waste = np.where(steps > 0, np.exp(-0.5 * (np.maximum(travelled / epsilon, 1) - 1)), 1.0)
    robustness = np.arange(levels + 1)[:, None]
    wanted = 4 + 28 * robustness / levels
    width = 6 + 6 * robustness / levels
    shape = (len(EPSILON), len(STEPS), len(STEP_SIZE))
    flat = np.broadcast_to(reach, shape).reshape(1, -1)
    worth = np.broadcast_to(quality * waste, shape).reshape(1, -1)
    fit = np.exp(-(((flat - wanted) / width) ** 2))
    gain = np.rint(PEAK * worth * fit).astype(np.int64)
    return np.minimum(gain, levels - robustness)
