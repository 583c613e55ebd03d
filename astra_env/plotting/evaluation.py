"""Figures of evaluations: accuracies side by side, curves, robust accuracy against epoch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from astra_env.plotting.style import new_figure, save

CURVES = {
    "curve: radius": ("PGD by radius", "epsilon (1/255)"),
    "curve: noise": ("Random noise by radius", "epsilon (1/255)"),
    "curve: path": ("Along the attack's path", "fraction of the way"),
}


def plot_evaluation(results: Mapping[str, Any], path: str | Path) -> Path:
    """Draw what ``results.json`` holds and return the figure's path.

    One panel of accuracies with their 95 % intervals (against the epoch when all kept checkpoints of a run were
    evaluated), and one panel for every kind of curve.
    """
    networks = results["networks"]
    present = [name for name in CURVES if any(name in record["measurements"] for record in networks.values())]
    figure, axes = new_figure(1, 1 + len(present))
    if results["conditions"].get("every"):
        _by_epoch(axes[0], networks)
    else:
        _side_by_side(axes[0], networks)
    for axis, name in zip(axes[1:], present, strict=True):
        _curve(axis, networks, name)
    for axis in axes:
        axis.set_ylim(0, 100)
        axis.set_ylabel("accuracy (%)")
        axis.legend(fontsize="small")
    if results["status"] != "complete":
        figure.suptitle("partial results")
    return save(figure, path)


def _side_by_side(axis: Axes, networks: Mapping[str, Any]) -> None:
    names = list(dict.fromkeys(name for record in networks.values() for name in _accuracies(record)))
    width = 0.8 / max(1, len(networks))
    for index, (network, record) in enumerate(networks.items()):
        found = _accuracies(record)
        places = [position for position, name in enumerate(names) if name in found]
        values, errors = _with_errors([found[names[place]] for place in places])
        shifted = [place + (index - (len(networks) - 1) / 2) * width for place in places]
        axis.bar(shifted, values, width, yerr=errors, capsize=2, label=network)
    axis.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize="small")


def _by_epoch(axis: Axes, networks: Mapping[str, Any]) -> None:
    runs = list(dict.fromkeys(name.rpartition("/")[0] for name in networks))
    names = list(dict.fromkeys(name for record in networks.values() for name in _accuracies(record)))
    for run, name in ((run, name) for run in runs for name in names):
        points = [
            (record["epoch"], _accuracies(record)[name])
            for network, record in networks.items()
            if network.rpartition("/")[0] == run and name in _accuracies(record) and record["epoch"] is not None
        ]
        values, errors = _with_errors([found for _, found in points])
        style = "--" if name.startswith("held-out") else "-"
        label = name if len(runs) == 1 else f"{run}: {name}"
        axis.errorbar([epoch for epoch, _ in points], values, errors, fmt=f"o{style}", capsize=2, label=label)
    axis.set_xlabel("epoch or step of training")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _curve(axis: Axes, networks: Mapping[str, Any], name: str) -> None:
    title, label = CURVES[name]
    for network, record in networks.items():
        curve = record["measurements"].get(name)
        if curve is not None:
            scale = 255 if curve["axis"] == "epsilon" else 1
            values, errors = _with_errors(curve["accuracies"])
            axis.errorbar([scale * value for value in curve["values"]], values, errors, capsize=2, label=network)
    axis.set_title(title)
    axis.set_xlabel(label)


def _accuracies(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found for name, found in record["measurements"].items() if "accuracy" in found}


def _with_errors(found: list[Any]) -> tuple[list[float], list[list[float]]]:
    """Return values and (below, above) distances to the interval's ends, in percent."""
    values = [100 * item["accuracy"] for item in found]
    below = [100 * (item["accuracy"] - item["interval"][0]) for item in found]
    above = [100 * (item["interval"][1] - item["accuracy"]) for item in found]
    return values, [[max(0.0, value) for value in below], [max(0.0, value) for value in above]]
