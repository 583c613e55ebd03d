"""What render() shows: one line of text, or a figure of the training so far."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from astra_env.strategy import StrategySpace

RENDER_MODES = ("ansi", "rgb_array")
MAX_POINTS = 512
CURVES = ("clean_loss", "adv_loss", "mixed_loss", "reward", "learning_rate")


class Recorder:
    """Remembers what a figure or a line of text shows.

    Args:
        mode: "ansi", "rgb_array" or None, which remembers nothing.
        space: the grids, whose shares the figure shows.
    """

    def __init__(self, mode: str | None, space: StrategySpace) -> None:
        self.mode = mode
        self.space = space
        self.clear()

    def clear(self) -> None:
        """Forget the episode."""
        self.line = "no step yet"
        self.curves: dict[str, list[float]] = {name: [] for name in ("step", *CURVES)}
        self.shares: list[list[np.ndarray]] = []
        self._stride, self._seen = 1, 0

    def record(self, total_steps: int, scalars: Mapping[str, float], actions: np.ndarray) -> None:
        """Take one step of the environment: its scalars and the grid indices (N, 3) it was trained under."""
        if self.mode == "ansi":
            self.line = text_line(total_steps, scalars)
        elif self.mode == "rgb_array":
            self._seen += 1
            if self._seen % self._stride:
                return
            self.curves["step"].append(scalars["step"])
            for name in CURVES:
                self.curves[name].append(scalars.get(name, float("nan")))
            self.shares.append(_shares(actions, self.space.sizes))
            if len(self.shares) > MAX_POINTS:
                self._thin_out()

    def render(self) -> Any:
        """Return a line of text, a uint8 (H, W, 3) frame, or None without a mode."""
        if self.mode == "ansi":
            return self.line
        if self.mode == "rgb_array":
            from astra_env.plotting.live import live_frame

            return live_frame(self.curves, self.shares, self.space)
        return None

    def _thin_out(self) -> None:
        """Keep every second point, so that a figure of a long training stays cheap."""
        self._stride *= 2
        self.shares = self.shares[::2]
        self.curves = {name: values[::2] for name, values in self.curves.items()}


def text_line(total_steps: int, scalars: Mapping[str, float]) -> str:
    """Return one line: where the training is, its reward and losses, and the mean attack."""
    parts = [f"step {scalars['step']:.0f}/{total_steps}", f"reward {scalars['reward']:+.4f}"]
    parts += [f"{name[:-5]} {scalars[name]:.3f}" for name in CURVES[:3] if name in scalars]
    if "mean_epsilon" in scalars:
        parts.append(
            f"attack {scalars['mean_epsilon'] * 255:.1f}/255 in {scalars['mean_steps']:.1f} steps of "
            f"{scalars['mean_step_size'] * 255:.1f}/255"
        )
    return "  ".join(parts)


def _shares(actions: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Return, for each parameter, which share of the rows chose each value of its grid."""
    return [np.bincount(actions[:, column], minlength=size) / len(actions) for column, size in enumerate(sizes)]
