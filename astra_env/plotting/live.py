"""The figure that an environment renders: strategy proportions, losses and reward of the training so far."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from astra_env.plotting.style import new_figure
from astra_env.strategy import StrategySpace

PANEL = (3.2, 2.6)
DPI = 100


def live_frame(
    curves: Mapping[str, Sequence[float]], shares: Sequence[Sequence[np.ndarray]], space: StrategySpace
) -> np.ndarray:
    """Draw one frame.

    Args:
        curves: ``step``, the three losses, ``reward`` and ``learning_rate``, one value per recorded step.
        shares: per recorded step, for each of epsilon, steps and step size, the share of every value of its grid.
        space: the grids.

    Returns:
        uint8 (520, 960, 3).
    """
    figure, axes = new_figure(2, 3, panel=PANEL)
    figure.set_dpi(DPI)
    grids: list[tuple[str, Sequence[float]]] = [
        ("epsilon (/255)", [value * 255 for value in space.epsilon]),
        ("steps", list(space.steps)),
        ("step size (/255)", [value * 255 for value in space.step_size]),
    ]
    steps = curves["step"]
    for column, (title, grid) in enumerate(grids):
        _proportions(axes[column], steps, [share[column] for share in shares], title, grid)
    for name in ("clean_loss", "adv_loss", "mixed_loss"):
        axes[3].plot(steps, curves[name], label=name.removesuffix("_loss"))
    axes[3].set_title("losses")
    axes[3].legend(fontsize=7, loc="upper right")
    axes[4].plot(steps, curves["reward"], color="tab:green")
    axes[4].set_title("reward")
    axes[5].plot(steps, curves["learning_rate"], color="tab:gray")
    axes[5].set_title("learning rate")
    for axis in axes[3:]:
        axis.set_xlabel("training step")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _proportions(
    axis: Axes, steps: Sequence[float], shares: Sequence[np.ndarray], title: str, grid: Sequence[float]
) -> None:
    """Stack the share of every value of one grid over the steps; darker is the smaller value."""
    axis.set_title(f"{title}: {grid[0]:.3g} (dark) to {grid[-1]:.3g}")
    axis.set_ylim(0, 1)
    if shares:
        colors = matplotlib.colormaps["viridis"](np.linspace(0, 1, len(grid)))
        axis.stackplot(list(steps), np.stack(shares, axis=1), colors=colors, step="post")
