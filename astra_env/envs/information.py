"""What both environments tell in ``info``: one fixed set of names, in ``reset`` and in ``step``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MEASURED = (
    "loss", "clean_loss", "adv_loss", "mixed_loss", "alignment", "uniformity", "grad_norm", "zero_gradient_share",
    "mean_reward", "reward_clean_loss", "reward_adv_loss", "reward_reference_loss",
    "mean_epsilon", "mean_steps", "mean_step_size", "learning_rate", "compute_spent", "budget_left", "price",
)  # fmt: skip
"""Measured scalars, float64; 0 where nothing was measured. No name is one that clients use for themselves."""
RENAMED = {"reward": "mean_reward"}
"""Names of a learner's scalars that clients use for themselves, and what ``info`` calls them."""
PER_VIEW = ("epsilon", "steps", "step_size")
"""What the vector environment tells besides: the attack of every view."""


def information(
    scalars: Mapping[str, float], more: Sequence[str], *, step: int, chunk_steps: int = 0, diverged: bool = False
) -> dict[str, Any]:
    """Return the information of a step, or of a reset for empty ``scalars``: NumPy scalars by name.

    Args:
        scalars: what was measured, by the learner's names.
        more: further names that the learner shows.
        step: minibatches trained so far.
        chunk_steps: minibatches trained in this step of the environment.
        diverged: whether training diverged in it.
    """
    values = {RENAMED.get(name, name): value for name, value in scalars.items()}
    info: dict[str, Any] = {name: np.float64(values.get(name, 0.0)) for name in (*MEASURED, *more)}
    return info | {"step": np.int64(step), "chunk_steps": np.int64(chunk_steps), "diverged": np.bool_(diverged)}
