"""What scripts/compare.py writes: a JSON record, a table and a figure."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

from astra_env.storage.checkpoint import write_atomically

COSTS = ("compute_spent", "attack_steps", "total_steps", "seconds")
FINAL = (("mean_epsilon", 255), ("mean_steps", 1))


def write_comparison(record: dict[str, Any], results: dict[str, list[dict[str, Any]]], run_dir: Path) -> None:
    """Write comparison.json, comparison.md and comparison.png of every variant's summaries, one per seed."""
    from astra_env.plotting.training import plot_comparison

    rows = {name: row(summaries) for name, summaries in results.items()}
    text = json.dumps({**record, "results": rows}, indent=2) + "\n"
    write_atomically(run_dir / "comparison.json", text.encode())
    table = markdown(rows)
    write_atomically(run_dir / "comparison.md", table.encode())
    percent = {name: {measure: entry["mean"] for measure, entry in measures(row).items()} for name, row in rows.items()}
    images, seeds = next(iter(results.values()))[0]["probe"]["clean"]["total"], len(record["seeds"])
    plot_comparison(percent, run_dir / "comparison.png", f"linear probe, {images} test images, {seeds} seed(s)")
    print(f"\n{table}\nfigures and runs: {run_dir} (strategy.png of each learned run shows what was chosen)")


def row(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means and spreads over seeds of one variant's accuracies (percent), attacks and costs.

    ``attack_steps`` are gradient steps per view over the whole training.
    """
    entry = {"clean": spread([100 * s["probe"]["clean"]["accuracy"] for s in summaries])}
    for epsilon in summaries[0]["probe"]["pgd"]:
        entry[f"pgd {epsilon}"] = spread([100 * s["probe"]["pgd"][epsilon]["accuracy"] for s in summaries])
    for name, scale in FINAL:
        if name in summaries[0]["final"]:
            entry[f"final_{name}"] = spread([scale * s["final"][name] for s in summaries])
    entry["compute_spent"] = spread([s.get("compute_spent", math.nan) for s in summaries])
    entry["attack_steps"] = spread([s["attack_steps"] / s["views_per_step"] for s in summaries])
    entry["total_steps"] = spread([s["steps"] for s in summaries])
    entry["seconds"] = spread([s["timing"]["seconds"] for s in summaries])
    return entry


def spread(values: list[float]) -> dict[str, Any]:
    """Return mean, sample standard deviation (0 for one value), half the 95 % t-interval and the values themselves."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    half = 0.0
    if len(values) > 1:
        from scipy.stats import t

        half = float(t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return {"mean": statistics.fmean(values), "std": deviation, "half_interval": half, "values": values}


def measures(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a row's accuracies alone."""
    return {name: value for name, value in entry.items() if name == "clean" or name.startswith("pgd")}


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """Return the table; epsilon and steps are those of the last logged training step, F per view what was spent."""
    names = list(measures(next(iter(rows.values()))))
    header = [
        "variant",
        *names,
        "epsilon (1/255)",
        "steps",
        "F per view",
        "attack steps per view",
        "training steps",
        "seconds",
    ]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for variant, entry in rows.items():
        cells = [variant, *(percent(entry[name]) for name in names)]
        for name, _ in FINAL:
            cells.append(f"{entry[f'final_{name}']['mean']:.1f}" if f"final_{name}" in entry else "-")
        cells += ["-" if math.isnan(entry[name]["mean"]) else f"{entry[name]['mean']:.0f}" for name in COSTS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def percent(value: dict[str, Any]) -> str:
    """Return "mean % ± deviation", the deviation only for several seeds."""
    deviation = f" ± {value['std']:.1f}" if len(value["values"]) > 1 else ""
    return f"{value['mean']:.1f} %{deviation}"
