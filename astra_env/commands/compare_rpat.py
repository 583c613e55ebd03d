"""Compare every method with and without robust perception under equal budgets, over seeds.

    python scripts/compare_rpat.py --suite digits --minutes 20
    python scripts/compare_rpat.py --suite cifar10 --root data/cifar10 --minutes 25

Finished runs are kept under --runs and never repeated, so the same command continues where it was stopped; the report
under --out is written anew after every run.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from astra_env.config.command_line import run_main
from astra_env.config.lists import spread
from astra_env.data import ImageDataset, split_validation
from astra_env.evaluation import autoattack, clean_accuracy, robust_accuracy
from astra_env.plotting.perception import TradeoffPoint, plot_tradeoff
from astra_env.plotting.style import save
from astra_env.storage.checkpoint import write_atomically
from astra_env.training.interrupts import GracefulStop
from rpat import Trainer
from rpat.cost import machine

METHODS = ("pgd_at", "trades", "mart", "consistency", "rebat")
METRICS = {"clean": "clean", "pgd_20": "PGD-20", "autoattack_quick": "AutoAttack-quick"}
EQUAL: dict[str, Any] = {
    "norm": "linf",
    "steps": 10,
    "network.name": "preact_resnet18",
    "network.width": 8,
    "network.normalize": "none",
    "augment.padding_mode": "zero",
    "augment.autoaugment": "never",
    "ema.decay": 0.99,
    "test.enabled": False,
    "run.progress": False,
}
"""What every run of every suite has in common; the rest of a method's published settings stays its own."""


@dataclass(frozen=True)
class Suite:
    """One data set at one budget; ``attacked`` test images are measured under AutoAttack."""

    title: str
    overrides: dict[str, Any]
    attacked: int
    tested: int


SUITES = {
    "digits": Suite(
        "Digits, 8x8, PreActResNet-18 of width 8, l-inf 16/255",
        {
            "data.name": "digits",
            "data.image_size": 8,
            "epsilon": "16/255",
            "step_size": "4/255",
            "epochs": 8,
            "batch_size": 64,
            "optimizer.learning_rate": 0.05,
            "optimizer.milestones": [5, 7],
            "ema.start_epoch": 5,
            "augment.padding": 1,
            "augment.flip": False,
            "validation.size": 200,
        },
        attacked=100,
        tested=360,
    ),
    "cifar10": Suite(
        "CIFAR-10 subset (5,000 JPEG images at 16x16), PreActResNet-18 of width 8, l-inf 8/255",
        {
            "data.name": "folder",
            "data.image_size": 16,
            "data.max_images": 5500,
            "epsilon": "8/255",
            "step_size": "2/255",
            "epochs": 6,
            "batch_size": 64,
            "optimizer.learning_rate": 0.05,
            "optimizer.milestones": [4, 5],
            "ema.start_epoch": 4,
            "augment.padding": 2,
            "validation.size": 500,
            "learner.channels_last": True,
        },
        attacked=200,
        tested=1000,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _parse(sys.argv[1:] if argv is None else argv)
    suite, runs = SUITES[options.suite], Path(options.runs) / options.suite
    deadline = time.monotonic() + 60 * options.minutes
    with GracefulStop() as stop:
        # Seeds are the outer loop, so that a run cut short compares all methods over fewer seeds.
        for seed in range(options.seeds):
            for method in options.methods:
                for perception in (False, True):
                    file = runs / f"{variant_name(method, perception)}-seed{seed}.json"
                    if file.exists():
                        continue
                    if stop.requested or time.monotonic() > deadline:
                        write_report(options, suite, load_results(runs))
                        return stop.exit_status
                    result = run_once(suite, method, perception, seed, options.root)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(file, json.dumps(result).encode())
                    scores = ", ".join(f"{METRICS[name]} {100 * result[name]:.1f} %" for name in METRICS)
                    print(f"{file.stem}: {scores} ({result['training_seconds']:.0f} s)", flush=True)
                    write_report(options, suite, load_results(runs))
    write_report(options, suite, load_results(runs))
    return 0


def variant_name(method: str, perception: bool) -> str:
    """Return the name of a row: the method, with ``+rp`` for robust perception."""
    return f"{method}+rp" if perception else method


def run_once(suite: Suite, method: str, perception: bool, seed: int, root: str) -> dict[str, Any]:
    """Train one variant, then measure the selected weights on the test images."""
    overrides = {**EQUAL, **suite.overrides, "method": method, "robust_perception": perception, "seed": seed}
    trainer = Trainer(overrides | {"data.root": root, "device": "cpu"})
    summary = trainer.fit()
    network, budget = trainer.selected(), trainer.config.budget
    test = subset(trainer.test, suite.tested)
    attacked = subset(trainer.test, suite.attacked)
    images = attacked.images.float() / 255
    strong = autoattack(network, images, attacked.labels, epsilon=budget.epsilon, norm=budget.norm, version="quick")
    return {
        "method": method,
        "robust_perception": perception,
        "seed": seed,
        "clean": clean_accuracy(network, test).value,
        "pgd_20": robust_accuracy(network, test, replace(budget, steps=20)).value,
        "autoattack_quick": strong.robust.value,
        "training_seconds": summary["training_seconds"],
        "best_validation": summary["best_validation"],
    }


def subset(dataset: ImageDataset, count: int) -> ImageDataset:
    """Return ``count`` images, every class in proportion and the same for every run."""
    return dataset if count >= len(dataset) else split_validation(dataset, count, 0)[1]


def load_results(folder: Path) -> list[dict[str, Any]]:
    """Return what the finished runs in ``folder`` measured."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*-seed*.json"))]


def write_report(options: argparse.Namespace, suite: Suite, results: list[dict[str, Any]]) -> None:
    """Write JSON, table and figure of all finished runs of a suite."""
    if not results:
        return
    variants = summarise(results)
    images = " --root DIR" if suite.overrides["data.name"] == "folder" else ""
    report = {
        "suite": options.suite,
        "title": suite.title,
        "command": f"python scripts/compare_rpat.py --suite {options.suite} --seeds {options.seeds}{images}",
        "covers": coverage(results, options.methods, options.seeds),
        "settings": {**EQUAL, **suite.overrides},
        "images": {"clean_and_pgd": suite.tested, "autoattack": suite.attacked},
        "machine": machine(),
        "variants": variants,
        "differences": differences(results),
        "runs": results,
    }
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{options.suite}.json", (json.dumps(report, indent=2) + "\n").encode())
    write_atomically(folder / f"{options.suite}.md", table(report).encode())
    points = [
        TradeoffPoint(
            name,
            clean=values["clean"]["mean"],
            robust=values["autoattack_quick"]["mean"],
            clean_spread=values["clean"]["sd"],
            robust_spread=values["autoattack_quick"]["sd"],
            group=name.removesuffix("+rp"),
            filled=name.endswith("+rp"),
        )
        for name, values in variants.items()
    ]
    figure = plot_tradeoff(points, title=suite.title, robust_label="AutoAttack-quick accuracy (%)")
    save(figure, folder / f"{options.suite}.png")


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds of every metric by variant."""
    variants: dict[str, Any] = {}
    for method in METHODS:
        for perception in (False, True):
            mine = [r for r in results if (r["method"], r["robust_perception"]) == (method, perception)]
            if mine:
                variants[variant_name(method, perception)] = {"seeds": len(mine)} | {
                    name: _spread([result[name] for result in mine]) for name in (*METRICS, "training_seconds")
                }
    return variants


def coverage(results: list[dict[str, Any]], methods: Sequence[str], seeds: int) -> dict[str, Any]:
    """Return how many of the runs that were asked for are finished, and the names of those that are not."""
    done = {(r["method"], r["robust_perception"], r["seed"]) for r in results}
    wanted = [(method, perception, seed) for seed in range(seeds) for method in methods for perception in (False, True)]
    missing = [f"{variant_name(m, p)}, seed {s}" for m, p, s in wanted if (m, p, s) not in done]
    return {"runs": len(wanted) - len(missing), "of": len(wanted), "missing": missing}


def differences(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what robust perception changes, paired by seed, with 95 % t-intervals; "all" pairs every method."""
    by_key = {(r["method"], r["robust_perception"], r["seed"]): r for r in results}
    pairs = [
        (method, result, by_key[method, True, seed])
        for (method, perception, seed), result in by_key.items()
        if not perception and (method, True, seed) in by_key
    ]
    return {
        name: {
            metric: _paired([(off[metric], on[metric]) for method, off, on in pairs if name in (method, "all")])
            for metric in METRICS
        }
        for name in (*METHODS, "all")
        if any(name in (method, "all") for method, _, _ in pairs)
    }


def _spread(values: list[float]) -> dict[str, float | None]:
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}


def _paired(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    from scipy.stats import t  # a second to import, which --help need not wait for

    gains = [on - off for off, on in pairs]
    mean, count = statistics.fmean(gains), len(gains)
    if count < 2:
        return {"mean": mean, "pairs": count, "interval": None, "verdict": "one seed"}
    half = float(t.ppf(0.975, count - 1)) * statistics.stdev(gains) / math.sqrt(count)
    verdict = "better" if mean - half > 0 else "worse" if mean + half < 0 else "undecided"
    return {"mean": mean, "pairs": count, "interval": [mean - half, mean + half], "verdict": verdict}


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    images = report["images"]
    lines = [f"# {report['title']}", "", f"`{report['command']}`", ""]
    lines += [
        f"Accuracy in % ± standard deviation over seeds. Clean and PGD-20: {images['clean_and_pgd']} test images; "
        f"AutoAttack-quick (the two APGD attacks): {images['autoattack']} of them, so it can exceed PGD-20.",
        "",
    ]
    covers = report["covers"]
    if covers["missing"]:
        lines += [f"**{covers['runs']} of {covers['of']} runs; not measured: {'; '.join(covers['missing'])}.**", ""]
    lines += ["| variant | seeds | " + " | ".join(METRICS.values()) + " |", "|---|---|" + "---|" * len(METRICS)]
    for name, values in report["variants"].items():
        cells = [_percent(values[metric]["mean"], values[metric]["sd"]) for metric in METRICS]
        lines.append(f"| {name} | {values['seeds']} | {' | '.join(cells)} |")
    lines += ["", "Change through robust perception in percentage points, paired by seed (95 % t-interval):", ""]
    lines += ["| method | " + " | ".join(METRICS.values()) + " |", "|---|" + "---|" * len(METRICS)]
    for name, values in report["differences"].items():
        lines.append(f"| {name} | {' | '.join(_change(values[metric]) for metric in METRICS)} |")
    return "\n".join(lines) + "\n"


def _percent(mean: float, deviation: float | None) -> str:
    return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def _change(change: dict[str, Any]) -> str:
    interval = change["interval"]
    span = "" if interval is None else f" [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"
    return f"{100 * change['mean']:+.1f}{span} {change['verdict']}"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=sorted(SUITES), default="digits")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=45.0, help="Start no new run after this time.")
    parser.add_argument("--root", default="data", help="Folder of the images, for the suite cifar10.")
    parser.add_argument("--runs", default="runs/compare_rpat", help="Where finished runs are kept.")
    parser.add_argument("--out", default="benchmarks/results/rpat", help="Where the report goes.")
    return parser.parse_args(spread(argv, ("--methods",)))


if __name__ == "__main__":
    sys.exit(run_main(main))
