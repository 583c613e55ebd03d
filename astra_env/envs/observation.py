"""The state of a training as a bounded vector: what AttackStrategy-v0 shows to an agent."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SMOOTHING = 0.9

BOUNDS: dict[str, tuple[float, float]] = {
    "progress": (0.0, 1.0),
    "learning_rate": (0.0, 1.0),
    "clean_loss": (0.0, 4.0),
    "adv_loss": (0.0, 4.0),
    "mixed_loss": (0.0, 4.0),
    "clean_loss_smoothed": (0.0, 4.0),
    "adv_loss_smoothed": (0.0, 4.0),
    "mixed_loss_smoothed": (0.0, 4.0),
    "alignment": (0.0, 4.0),
    "uniformity": (-8.0, 0.0),
    "gradient_norm": (0.0, 10.0),
    "reward": (-10.0, 10.0),
    "reward_smoothed": (-10.0, 10.0),
    "epsilon": (0.0, 1.0),
    "steps": (0.0, 1.0),
    "step_size": (0.0, 1.0),
}
"""Every entry of the observation in order, with its lowest and highest value."""

LOSSES = ("clean_loss", "adv_loss", "mixed_loss")


def mean_of(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every scalar over the minibatches of a chunk."""
    return {name: sum(entry[name] for entry in history) / len(history) for name in history[0]}


class TrainingSummary:
    """Keeps the observation vector up to date.

    Args:
        grid_sizes: lengths of the grids of epsilon, steps and step size.
        peak_learning_rate: the learning rate that counts as 1.
    """

    def __init__(self, grid_sizes: Sequence[int], peak_learning_rate: float) -> None:
        self.grid_sizes = grid_sizes
        self.peak_learning_rate = peak_learning_rate
        self.smoothed: dict[str, float] = {}
        self.values = dict.fromkeys(BOUNDS, 0.0)

    def smooth(self, scalars: Mapping[str, float]) -> None:
        """Take one minibatch into the running means."""
        for name in (*LOSSES, "reward"):
            value = scalars.get(name, 0.0)
            before = self.smoothed.get(name, value)
            self.smoothed[name] = SMOOTHING * before + (1 - SMOOTHING) * value

    def update(self, scalars: Mapping[str, float], action: np.ndarray, loss_scales: Mapping[str, float]) -> None:
        """Show what a chunk brought: the means of its scalars and the action (3,) it was trained under.

        Losses are shown in the unit ``loss_scales``: what each is for outputs that carry no information.
        """
        for name in LOSSES:
            scale = loss_scales.get(name, 1.0)
            self.values[name] = scalars.get(name, 0.0) / scale
            self.values[f"{name}_smoothed"] = self.smoothed[name] / scale
        self.values["alignment"] = scalars.get("alignment", 0.0)
        self.values["uniformity"] = scalars.get("uniformity", 0.0)
        self.values["gradient_norm"] = math.log1p(max(0.0, scalars["grad_norm"]))
        self.values["reward"] = scalars["reward"]
        self.values["reward_smoothed"] = self.smoothed["reward"]
        for name, index, size in zip(("epsilon", "steps", "step_size"), action, self.grid_sizes, strict=True):
            self.values[name] = float(index) / max(1, size - 1)

    def show_schedule(self, progress: float, learning_rate: float) -> None:
        """Show how much of the budget is used up and the learning rate of the next minibatch."""
        self.values["progress"] = progress
        self.values["learning_rate"] = learning_rate / self.peak_learning_rate

    def vector(self) -> np.ndarray:
        """Return the observation: float32 (16,), inside the bounds, in a buffer of its own."""
        low, high = np.array(list(BOUNDS.values()), dtype=np.float32).T
        vector = np.array([self.values[name] for name in BOUNDS], dtype=np.float64)
        return np.clip(np.nan_to_num(vector, nan=0.0), low, high).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Return the entries and the running means."""
        return {"values": dict(self.values), "smoothed": dict(self.smoothed)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``state`` was taken."""
        self.values, self.smoothed = dict(state["values"]), dict(state["smoothed"])
