"""Figures of agents that learned to choose attacks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from astra_env.plotting.style import new_figure, save

WINDOW = 24


def learning_figure(
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    evaluation: Mapping[str, Sequence[float]],
    path: str | Path,
) -> Path:
    """Draw what agents did while they learned, and what they reach afterwards.

    Args:
        curves: by agent, for each seed, per step: reward, mean_epsilon and mean_step_size in [0, 1] pixel units,
            mean_steps. Lines are means over the seeds, smoothed over 24 steps; bands span the seeds.
        evaluation: by agent, the mean reward of each seed, frozen.
        path: where to write.
    """
    figure, axes = new_figure(1, 4, panel=(3.8, 3.2))
    panels = [
        ("reward", 1, "reward while learning"),
        ("mean_epsilon", 255, "epsilon (/255)"),
        ("mean_steps", 1, "steps"),
    ]
    for axis, (name, scale, title) in zip(axes, panels, strict=False):
        for agent, runs in curves.items():
            if runs and runs[0]:
                lines = np.stack([_smooth([scale * entry[name] for entry in run]) for run in runs])
                axis.plot(lines.mean(0), label=agent)
                axis.fill_between(np.arange(lines.shape[1]), lines.min(0), lines.max(0), alpha=0.2)
        axis.set_title(title)
        axis.set_xlabel("step of the environment")
    axes[0].legend()
    for position, values in enumerate(evaluation.values()):
        axes[3].bar(position, np.mean(values), alpha=0.6, color=f"C{position}")
        axes[3].plot([position] * len(values), values, "k.", markersize=6)
    axes[3].set_xticks(range(len(evaluation)), list(evaluation))
    axes[3].set_title("reward afterwards, frozen (dots: seeds)")
    return save(figure, path)


def _smooth(values: Sequence[float]) -> np.ndarray:
    """Return the running mean over the last 24 values."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - WINDOW)
    return (sums[ends] - sums[starts]) / (ends - starts)
