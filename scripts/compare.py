"""Train the same encoder under several ways of choosing the attack, and compare what a linear probe makes of each."""

import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from train_astra import run_training

from astra_env.checkpoint import write_atomically
from astra_env.command_line import run_main
from astra_env.config import ExperimentConfig
from astra_env.configuration import build_parser, from_dict, load_config, parse_command_line, to_dict
from astra_env.errors import ConfigError

DESCRIPTION = """Train the same encoder under several ways of choosing the attack and compare linear probes.

Finished runs under --run_dir are not repeated, interrupted ones continue. Writes comparison.json, comparison.md and
comparison.png there.

Variants:
  no_attack    clean contrastive training
  fixed        8/255, 5 steps of 2/255 for every view
  random       every view's attack drawn at random from the grids
  paper        the published REINFORCE and shared reward (strategy network as narrow as the target)
  constant     the same with a reward that says nothing: the control
  learned      per-view credit, baseline, entropy bonus (the improved REINFORCE)
  cost_aware   the same, paying for every attack step
  exact, fast  learned in float32, and with learner.fast: what speed does to the result
"""

IMPROVED = {"policy": "reinforce", "learner.reward": "per_view"}
VARIANTS: dict[str, dict[str, Any]] = {
    "no_attack": {"policy": "fixed", "policy_args": {}, "learner.objective": "simclr"},
    "fixed": {"policy": "fixed", "policy_args": {}},
    "random": {"policy": "random", "policy_args": {}},
    "paper": {"policy": "reinforce", "policy_args": {"preset": "paper", "width": 16}, "learner.reward": "astra"},
    "constant": {"policy": "reinforce", "policy_args": {"preset": "paper", "width": 16}, "learner.reward": "constant"},
    "learned": IMPROVED,
    "cost_aware": {**IMPROVED, "learner.reward": "cost_aware"},
    "exact": {**IMPROVED, "learner.precision": "fp32", "learner.channels_last": False, "learner.fast": False},
    "fast": {**IMPROVED, "learner.fast": True},
}


def main() -> int:
    parser = build_parser(ExperimentConfig, description=DESCRIPTION)
    parser.add_argument(
        "--variants", nargs="+", default=["no_attack", "fixed", "learned"], help=f"Which of {', '.join(VARIANTS)}."
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="One run per variant and seed.")
    parser.add_argument("--run_dir", type=str, default="runs/comparison", help="Where the runs are written.")
    parser.add_argument("--quiet", action="store_true", help="No progress bars.")
    values = parse_command_line(parser)
    variants, seeds, run_dir, quiet = (values.pop(name) for name in ("variants", "seeds", "run_dir", "quiet"))
    for name in variants:
        if name not in VARIANTS:
            raise ConfigError(f"variants: expected some of {', '.join(VARIANTS)}, got {name!r}")
    base = to_dict(from_dict(ExperimentConfig, values))
    started = time.perf_counter()
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for seed in seeds:
        for name in variants:
            overrides = {**VARIANTS[name], "seed": seed}
            if "policy_args" in overrides:
                base_for_variant = {**base, "policy_args": overrides.pop("policy_args")}
            else:
                base_for_variant = base
            config = load_config(ExperimentConfig, base_for_variant, overrides)
            results[name].append(finished_summary(config, Path(run_dir) / f"{name}-seed{seed}", quiet))
    write_comparison(results, seeds, Path(run_dir), base, time.perf_counter() - started)
    return 0


def finished_summary(config: ExperimentConfig, run_dir: Path, quiet: bool) -> dict[str, Any]:
    """Return the run's summary, training it or continuing it first where needed."""
    path = run_dir / "summary.json"
    if not path.exists():
        status = run_training(config, run_dir, resume=(run_dir / "config.yaml").exists(), quiet=quiet)
        if status:
            sys.exit(status)
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def write_comparison(
    results: dict[str, list[dict[str, Any]]], seeds: list[int], run_dir: Path, base: dict[str, Any], seconds: float
) -> None:
    from astra_env.plotting.training import plot_comparison

    rows = {name: row(summaries) for name, summaries in results.items()}
    record = {
        "command": " ".join(["scripts/compare.py", *sys.argv[1:]]),
        "machine": {"cpu": cpu_name(), "system": platform.platform()},
        "versions": next(iter(results.values()))[0]["versions"],
        "seeds": seeds,
        "seconds": round(seconds, 1),
        "config": base,
        "results": rows,
    }
    write_atomically(run_dir / "comparison.json", (json.dumps(record, indent=2) + "\n").encode())
    table = markdown(rows)
    write_atomically(run_dir / "comparison.md", table.encode())
    percent = {name: {measure: entry["mean"] for measure, entry in measures(row).items()} for name, row in rows.items()}
    images = next(iter(results.values()))[0]["probe"]["clean"]["total"]
    plot_comparison(percent, run_dir / "comparison.png", f"linear probe, {images} test images, {len(seeds)} seed(s)")
    print(f"\n{table}\nfigures and runs: {run_dir} (strategy.png of each learned run shows what was chosen)")


def row(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means and spreads over seeds of one variant's accuracies (percent), attack budgets and time."""
    entry = {"clean": spread([100 * s["probe"]["clean"]["accuracy"] for s in summaries])}
    for epsilon in summaries[0]["probe"]["pgd"]:
        entry[f"pgd {epsilon}"] = spread([100 * s["probe"]["pgd"][epsilon]["accuracy"] for s in summaries])
    for name, scale in (("mean_epsilon", 255), ("mean_steps", 1)):
        if name in summaries[0]["final"]:
            entry[f"final_{name}"] = spread([scale * s["final"][name] for s in summaries])
    entry["seconds"] = spread([s["timing"]["seconds"] for s in summaries])
    return entry


def spread(values: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "values": values}


def measures(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name == "clean" or name.startswith("pgd")}


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    names = list(measures(next(iter(rows.values()))))
    header = ["attack in training", *names, "epsilon (1/255)", "steps", "seconds"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for variant, entry in rows.items():
        cells = [variant, *(percent(entry[name]) for name in names)]
        for name in ("final_mean_epsilon", "final_mean_steps"):
            cells.append(f"{entry[name]['mean']:.1f}" if name in entry else "-")
        lines.append("| " + " | ".join([*cells, f"{entry['seconds']['mean']:.0f}"]) + " |")
    return "\n".join(lines) + "\n"


def percent(value: dict[str, Any]) -> str:
    deviation = f" ± {value['std']:.1f}" if len(value["values"]) > 1 else ""
    return f"{value['mean']:.1f} %{deviation}"


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    sys.exit(run_main(main))
