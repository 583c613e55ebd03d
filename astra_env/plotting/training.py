"""Figures of a training run: which attacks were chosen, and how losses and reward went."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from astra_env.plotting.style import new_figure, save
from astra_env.strategy import PARAMETERS, StrategySpace

LABELS = {"epsilon": "epsilon (1/255)", "steps": "PGD steps", "step_size": "step size (1/255)"}


def plot_strategies(metrics: Sequence[dict[str, Any]], space: StrategySpace, path: str | Path) -> Path | None:
    """Draw the share of every epsilon, number of steps and step size over training as stacked areas (ASTrA's figure).

    Args:
        metrics: lines of ``metrics.jsonl``.
        space: the grids the shares belong to.
        path: where the figure goes.

    Returns:
        The path, or None when the run chose no attacks.
    """
    rows = [line for line in metrics if "epsilon_shares" in line]
    if not rows:
        return None
    figure, axes = new_figure(1, len(PARAMETERS), panel=(4.6, 3.4))
    for axis, name in zip(axes, PARAMETERS, strict=True):
        draw_shares(axis, [row["step"] for row in rows], [row[f"{name}_shares"] for row in rows], name, space)
    axes[0].set_ylabel("share of views")
    return save(figure, path)


def draw_shares(
    axis: Axes, steps: Sequence[int], shares: Sequence[Sequence[float]], name: str, space: StrategySpace
) -> None:
    """Draw one grid's shares (len(steps), K) as stacked areas, the largest value on top in the darkest colour."""
    grid = getattr(space, name)
    values = smooth(np.asarray(shares, dtype=float))
    colours = colormaps["viridis_r"](np.linspace(0.05, 0.95, len(grid)))
    if len(steps) == 1:
        steps, values = [steps[0], steps[0] + 1], np.repeat(values, 2, axis=0)
    labels = [f"{value:g}" if name == "steps" else f"{value * 255:g}" for value in grid]
    axis.stackplot(steps, values.T, colors=colours, labels=labels)
    axis.set(xlabel="step", title=LABELS[name], ylim=(0, 1), xlim=(steps[0], steps[-1]))
    axis.legend(
        *[part[::-1] for part in axis.get_legend_handles_labels()],
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        fontsize=7,
        frameon=False,
    )


def plot_losses(metrics: Sequence[dict[str, Any]], path: str | Path) -> Path:
    """Draw losses and reward over training from the lines of ``metrics.jsonl``."""
    figure, axes = new_figure(1, 2)
    steps = [line["step"] for line in metrics]
    for name in ("loss", "clean_loss", "adv_loss", "mixed_loss"):
        if all(name in line for line in metrics):
            axes[0].plot(steps, [line[name] for line in metrics], label=name.replace("_", " "), linewidth=1)
    axes[0].set(xlabel="step", title="losses")
    axes[0].legend(fontsize=8, frameon=False)
    axes[1].plot(steps, [line["reward"] for line in metrics], linewidth=1, color="tab:red")
    axes[1].set(xlabel="step", title="reward")
    return save(figure, path)


def supervised_figure(metrics: Sequence[dict[str, Any]]) -> Figure:
    """Return the figure of a supervised run: loss terms by step, validation accuracy of network and average by epoch.

    ``metrics``: lines of ``metrics.jsonl``, named as the trainer of ``rpat`` logs them.
    """
    figure, axes = new_figure(1, 2)
    for axis, prefix, place, scale in ((axes[0], "train/loss", "step", 1), (axes[1], "validation", "epoch", 100)):
        for name in dict.fromkeys(key for line in metrics for key in line if key.startswith(prefix)):
            rows = [line for line in metrics if name in line]
            label = name.removeprefix("train/").replace("validation_ema/", "average: ").removeprefix("validation/")
            values = [scale * row[name] for row in rows]
            axis.plot([row[place] for row in rows], values, label=label.replace("_", " "), linewidth=1, marker=".")
        if axis.lines:
            axis.legend(fontsize=8, frameon=False)
    axes[0].set(xlabel="step", title="losses")
    axes[1].set(xlabel="epoch", ylabel="accuracy (%)", title="validation", ylim=(0, 100))
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def plot_comparison(results: dict[str, dict[str, float]], path: str | Path, title: str) -> Path:
    """Draw accuracies of several runs as grouped bars; ``results[run][measure]`` in percent."""
    figure, (axis,) = new_figure(panel=(1.6 + 1.5 * len(results), 3.6))
    measures = list(next(iter(results.values())))
    width = 0.8 / len(measures)
    for index, measure in enumerate(measures):
        positions = np.arange(len(results)) + (index - (len(measures) - 1) / 2) * width
        bars = axis.bar(positions, [result[measure] for result in results.values()], width, label=measure)
        axis.bar_label(bars, fmt="%.0f", fontsize=8)
    axis.set_xticks(range(len(results)), list(results))
    axis.set(ylim=(0, 109), ylabel="accuracy (%)", title=title)
    axis.legend(fontsize=8, frameon=False, ncols=len(measures), loc="upper center")
    return save(figure, path)


def smooth(values: np.ndarray, points: int = 200) -> np.ndarray:
    """Return a moving average over about 1/``points`` of the rows on either side; (T, K) -> (T, K)."""
    window = len(values) // points
    if window < 1:
        return values
    padded = np.pad(values, ((window, window), (0, 0)), mode="edge")
    cumulative = np.cumsum(np.vstack([np.zeros((1, values.shape[1])), padded]), axis=0)
    span = 2 * window + 1
    return (cumulative[span:] - cumulative[:-span]) / span
