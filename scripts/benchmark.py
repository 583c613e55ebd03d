"""Measure training steps and evaluations in every mode against the official form, in one process."""

import json
import math
import os
import platform
import sys
from pathlib import Path
from typing import Any

import jsonargparse

from astra_env.config.command_line import run_main
from astra_env.errors import ConfigError

DESCRIPTION = """Measure what a step costs: ms per phase, views/s, arithmetic against the measured ceiling, memory.

  --what astra        ASTrA's step: plain (masked full batch, weight gradients in the attack, per-view conversion: the
                      official form), exact (the same numbers without the waste), channels_last, folded, bf16, fast
                      (learner.fast), and, when asked for by --modes, tf32, compile and cuda_graphs
  --what rpat         PGD-AT with robust perception: the official form, ours, ours with learner.fast
  --what evaluation   images/s under PGD-20 (and AutoAttack, with --autoattack)
  --what memory       the bytes of ASTrA's step on --views views, from the activations of a small batch

All contestants run in turn on the same images and budgets; medians are reported, ratios are taken round by round.
--curve 8 16 32 repeats astra for so many images and draws the cost against the views beside --output.
"""
DEFAULT_MODES = ["plain", "exact", "channels_last", "folded", "bf16", "fast"]
BLOCKS = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3]}


def main() -> int:
    parser = jsonargparse.ArgumentParser(description=DESCRIPTION)
    parser.add_argument("--what", default="astra", help="astra, rpat, evaluation or memory.")
    parser.add_argument(
        "--model", default="resnet18", help="astra, memory: resnet18 or resnet34; others: also preact_resnet18, ..."
    )
    parser.add_argument("--width", type=int, default=None, help="Channels of the first stage; default the network's.")
    parser.add_argument("--batch_size", type=int, default=16, help="Images per step; each gives two views to astra.")
    parser.add_argument("--image_size", type=int, default=32, help="Side of an image.")
    parser.add_argument("--modes", nargs="+", default=DEFAULT_MODES, help="astra: which modes.")
    parser.add_argument("--policy", default="uniform", help="astra: budgets uniform (random), fixed (5 steps) or max.")
    parser.add_argument("--curve", nargs="+", type=int, default=[], help="astra: batch sizes to repeat it for.")
    parser.add_argument("--views", type=int, default=1024, help="memory: views of the step.")
    parser.add_argument("--autoattack", default=None, help="evaluation: also time AutoAttack, quick or standard.")
    parser.add_argument("--repeat", type=int, default=5, help="Rounds after the warm-up.")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto.")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads.")
    parser.add_argument("--quiet", action="store_true", help="No progress bars.")
    parser.add_argument("--output", default=None, help="JSON file to write.")
    options = parser.parse_args()
    check(options)
    record = measure(options)
    print(table(record))
    if options.output is not None:
        write(record, Path(options.output))
    return 0


def check(options: Any) -> None:
    from benchmarking.measure import MODES

    one_of("what", options.what, list(MEASUREMENTS))
    for mode in options.modes:
        one_of("modes", mode, list(MODES))
    one_of("policy", options.policy, ["uniform", "fixed", "max"])
    one_of("autoattack", options.autoattack, [None, "quick", "standard"])
    if options.what in ("astra", "memory"):
        one_of("model", options.model, list(BLOCKS))


def one_of(name: str, value: Any, allowed: list[Any]) -> None:
    if value not in allowed:
        shown = ", ".join(str(choice) for choice in allowed if choice is not None)
        raise ConfigError(f"{name}: expected one of {shown}, got {value!r}")


def measure(options: Any) -> dict[str, Any]:
    import torch
    from benchmarking.measure import matmul_ceiling

    from astra_env.compute import cpu_name, resolve_device
    from astra_env.training.trainer import versions

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    precisions = {"fp32": torch.float32, "bf16": torch.bfloat16}
    record: dict[str, Any] = {
        "command": " ".join(["scripts/benchmark.py", *sys.argv[1:]]),
        "machine": {
            "cpu": cpu_name(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_at_start": os.getloadavg()[0],
        },
        "versions": versions(),
        "what": options.what,
        "model": options.model,
        "matmul_flops_per_second": {name: matmul_ceiling(device, dtype) for name, dtype in precisions.items()},
    }
    return {**record, **MEASUREMENTS[options.what](options, device, record["matmul_flops_per_second"])}


def astra(options: Any, device: Any, ceilings: dict[str, float]) -> dict[str, Any]:
    from benchmarking.measure import compare

    from astra_env.data import load_dataset

    dataset = load_dataset("digits", image_size=options.image_size, device=device)

    def at(batch_size: int) -> dict[str, Any]:
        return compare(
            options.modes,
            astra_settings(options, device, batch_size),
            dataset,
            options.policy,
            options.repeat,
            ceilings=ceilings,
            progress=not options.quiet,
        )

    common = {"budgets": options.policy, "rounds": options.repeat}
    if options.curve:
        return {**common, "curve": {2 * size: at(size) for size in sorted(options.curve)}}
    return {**common, "views": 2 * options.batch_size, "modes": at(options.batch_size)}


def astra_settings(options: Any, device: Any, batch_size: int) -> dict[str, Any]:
    return {
        "device": str(device),
        "target.width": options.width or 64,
        "target.blocks": BLOCKS[options.model],
        "learner.batch_size": batch_size,
        "learner.warmup_epochs": 0,
    }


def rpat(options: Any, device: Any, ceilings: dict[str, float]) -> dict[str, Any]:
    from rpat.cost import benchmark

    return benchmark(
        options.model,
        options.batch_size,
        options.image_size,
        options.repeat,
        width=options.width,
        device=device,
        progress=not options.quiet,
    ) | {"command": " ".join(["scripts/benchmark.py", *sys.argv[1:]])}


def evaluation(options: Any, device: Any, ceilings: dict[str, float]) -> dict[str, Any]:
    import torch
    from benchmarking.evaluation import autoattack_throughput, pgd_throughput

    from astra_env.data import load_dataset
    from astra_env.models import NETWORKS

    source = torch.Generator().manual_seed(0)
    model = NETWORKS.get(options.model)(10, width=options.width, generator=source).to(device).eval()
    dataset = load_dataset("digits", "test", image_size=options.image_size)
    images = dataset.subset(torch.arange(options.batch_size))
    result: dict[str, Any] = {
        "images": options.batch_size,
        "pgd_20": pgd_throughput(model, images, repeats=options.repeat, progress=not options.quiet),
    }
    if options.autoattack is not None:
        name = f"autoattack_{options.autoattack}"
        result[name] = autoattack_throughput(model, images, version=options.autoattack, progress=not options.quiet)
    return result


def memory(options: Any, device: Any, ceilings: dict[str, float]) -> dict[str, Any]:
    from benchmarking.measure import MODES
    from benchmarking.memory import model_of_memory

    from astra_env.config.reading import load_config
    from astra_env.config.schema import ExperimentConfig
    from astra_env.data import load_dataset
    from astra_env.learner.contrastive import ContrastiveLearner

    dataset = load_dataset("digits", image_size=options.image_size, device=device)
    modes = {}
    for mode in [mode for mode in options.modes if mode != "plain"]:
        settings = {**astra_settings(options, device, options.batch_size), **MODES[mode], "learner.compile": "none"}
        learner = ContrastiveLearner(load_config(ExperimentConfig, "cifar10", settings), dataset)
        modes[mode] = model_of_memory(learner, options.views)
    return {"views": options.views, "counted_on_views": 2 * options.batch_size, "memory": modes}


MEASUREMENTS = {"astra": astra, "rpat": rpat, "evaluation": evaluation, "memory": memory}


def table(record: dict[str, Any]) -> str:
    """Return what was measured as tables in Markdown."""
    ceilings = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in record["matmul_flops_per_second"].items())
    if "modes" in record:
        parts = [astra_table(record["modes"])]
    elif "curve" in record:
        parts = [f"{views} views\n{astra_table(modes)}" for views, modes in record["curve"].items()]
    elif "memory" in record:
        parts = [rows(["mode", *next(iter(record["memory"].values()))], record["memory"], 1e6, "MB")]
    elif "pgd_20" in record:
        parts = [rows(["PGD-20", "images_per_second", "speedup", "accuracy"], record["pgd_20"])]
        parts += [f"{name}: {value}" for name, value in record.items() if name.startswith("autoattack")]
    else:
        medians, counts = record["median_seconds"], record["forward_equivalents"]
        entries = {
            form: {"F/step": counts[form], "seconds": medians[form], "x": medians["official"] / medians[form]}
            for form in ("official", "ours", "fast")
        }
        parts = [rows(["rpat", "F/step", "seconds", "x"], entries)]
    return "\n\n".join([*parts, f"matmul ceiling (GFLOP/s): {ceilings}"])


def rows(header: list[str], entries: dict[str, Any], unit: float = 1.0, name: str = "") -> str:
    lines = [
        header,
        *([key, *(cell(entry[column] / unit) for column in header[1:])] for key, entry in entries.items()),
    ]
    lines.insert(1, ["---"] * len(header))
    caption = f"\n(in {name})" if name else ""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + caption


def cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def astra_table(modes: dict[str, Any]) -> str:
    from benchmarking.clock import PHASES

    columns = [*PHASES, "step (ms)", "views/s", "attack x", "step x", "F/step", "% of ceiling"]
    entries = {}
    for mode, entry in modes.items():
        milliseconds = entry["milliseconds"]
        values = [milliseconds[phase] for phase in (*PHASES, "step")] + [entry["views_per_second"]]
        values += [entry.get(f"{part}_speedup", float("nan")) for part in ("attack", "step")]
        values += [entry["forward_equivalents"]["step"], entry.get("attack_percent_of_ceiling", float("nan"))]
        entries[mode] = dict(zip(columns, values, strict=True))
    return rows(["mode", *columns], entries)


def write(record: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    if "curve" in record:
        from astra_env.plotting.benchmark import plot_curve

        plot_curve(record["curve"], path.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(run_main(main))
