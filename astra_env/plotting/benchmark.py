"""The figure of a benchmark: what a step costs against the number of views."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from astra_env.plotting.style import new_figure, save


def plot_curve(curve: Mapping[int, Mapping[str, Any]], path: str | Path) -> Path:
    """Draw seconds per step and milliseconds per view of every mode.

    Args:
        curve: by number of views, what the comparison of modes reported.
        path: where the figure goes.
    """
    figure, (total, each) = new_figure(1, 2)
    views = sorted(curve)
    for mode in next(iter(curve.values())):
        seconds = [curve[count][mode]["milliseconds"]["step"] / 1000 for count in views]
        total.plot(views, seconds, "o-", label=mode)
        each.plot(views, [1000 * value / count for value, count in zip(seconds, views, strict=True)], "o-", label=mode)
    total.set(xlabel="views in a step", ylabel="seconds per step", ylim=(0, None), xlim=(0, None))
    each.set(xlabel="views in a step", ylabel="milliseconds per view", ylim=(0, None), xlim=(0, None))
    total.legend(fontsize="small", frameon=False)
    return save(figure, path)
