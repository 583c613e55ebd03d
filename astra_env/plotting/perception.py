"""Figures of supervised robust training: accuracy against robustness, and how perception moves towards x'."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from astra_env.plotting.style import new_figure


@dataclass(frozen=True)
class TradeoffPoint:
    """One run, or the mean of several, in the trade-off figure.

    Attributes:
        name: the label.
        clean: clean accuracy, 0 to 1.
        robust: robust accuracy, 0 to 1.
        clean_spread: standard deviation of ``clean``; None for a single run.
        robust_spread: standard deviation of ``robust``.
        group: points of one group share a colour and are joined by a line.
        filled: solid marker; a hollow one otherwise.
    """

    name: str
    clean: float
    robust: float
    clean_spread: float | None = None
    robust_spread: float | None = None
    group: str | None = None
    filled: bool = True


def plot_tradeoff(
    points: Sequence[TradeoffPoint], *, title: str = "", robust_label: str = "robust accuracy (%)"
) -> Figure:
    """Return a figure of clean against robust accuracy; up and to the right is better."""
    figure, (axis,) = new_figure(panel=(7.6, 4.6))
    groups = list(dict.fromkeys(point.group or point.name for point in points))
    for index, group in enumerate(groups):
        members = [point for point in points if (point.group or point.name) == group]
        color = f"C{index % 10}"
        clean, robust = ([100 * getattr(point, name) for point in members] for name in ("clean", "robust"))
        axis.plot(clean, robust, color=color, alpha=0.4, linewidth=1)
        for point, x, y in zip(members, clean, robust, strict=True):
            axis.errorbar(
                x,
                y,
                xerr=None if point.clean_spread is None else 100 * point.clean_spread,
                yerr=None if point.robust_spread is None else 100 * point.robust_spread,
                marker="o",
                color=color,
                markerfacecolor=color if point.filled else "white",
                elinewidth=0.8,
                capsize=2,
                label=point.name,
            )
    axis.set_xlabel("clean accuracy (%)")
    axis.set_ylabel(robust_label)
    axis.set_title(title, fontsize=9)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def plot_perception_path(
    positions: Sequence[float], paths: Mapping[str, Mapping[str, Sequence[float]]], *, title: str = ""
) -> Figure:
    """Return a figure of how far perception has moved on the way from x to x'.

    Args:
        positions: places on the segment, 0 at x and 1 at x'.
        paths: by stratum, ``distance`` (share of the whole way in logit space) and ``deviation`` (distance from the
            straight line, as a share of the same) at every position.
        title: the figure's title.
    """
    figure, (left, right) = new_figure(1, 2)
    for name, curves in paths.items():
        left.plot(positions, curves["distance"], marker=".", label=name)
        right.plot(positions, curves["deviation"], marker=".", label=name)
    left.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1, label="straight")
    left.set_ylabel("perception moved, share of |z(x') - z(x)|")
    right.set_ylabel("off the straight line, share of |z(x') - z(x)|")
    for axis in (left, right):
        axis.set_xlabel("position between x (0) and x' (1)")
    left.legend(fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure
