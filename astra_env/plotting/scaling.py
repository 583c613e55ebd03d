"""The communication model as a figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from astra_env.plotting.style import new_figure, save

PARTS = ("compute", "repeated", "features", "gradients", "latency")


def plot_scaling(results: Mapping[str, Any], path: str | Path) -> Path:
    """Draw counted against predicted bytes, and for every extrapolation the step's parts by number of ranks."""
    predictions: Mapping[str, Any] = results["extrapolated"]
    figure, axes = new_figure(1, 1 + len(predictions))
    measured = results["measured"]
    for name in ("all_gather", "gradients", "all_reduce", "broadcast"):
        counted = [run["counted_bytes_per_step"].get(name, 0) for run in measured]
        axes[0].plot([run["predicted_bytes_per_step"][name] for run in measured], counted, "o", label=name)
    low, high = axes[0].get_xlim()
    axes[0].plot([low, high], [low, high], color="gray", linewidth=0.8)
    axes[0].set(
        title="bytes put in by a rank in a step", xlabel="formula", ylabel="counted", xscale="log", yscale="log"
    )
    axes[0].legend()
    for axis, (title, prediction) in zip(axes[1:], predictions.items(), strict=True):
        rows, bottom = prediction["rows"], [0.0] * len(prediction["rows"])
        names = [str(row["ranks"]) for row in rows]
        for part in PARTS:
            heights = [1000 * row[part] for row in rows]
            axis.bar(names, heights, bottom=bottom, label=part)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        axis.set(title=title, xlabel="ranks", ylabel="milliseconds of a step (model)")
        axis.legend()
    return save(figure, path)
