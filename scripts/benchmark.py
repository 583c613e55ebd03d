"""Measure a training step in every mode against the step as the official code does it, in one process."""

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import jsonargparse

from astra_env.command_line import run_main
from astra_env.errors import ConfigError

DESCRIPTION = """Measure ASTrA's training step: ms per phase, views/s, arithmetic and memory.

All modes run in turn on the same images and budgets; medians are reported, ratios are taken round by round.
  plain          masked full batch, weight gradients in the attack, per-view conversion (the official form)
  exact          the same numbers without the waste
  channels_last, folded, bf16, fast    further modes, see --modes
"""


def main() -> int:
    from astra_env.benchmarking.measure import MODES

    parser = jsonargparse.ArgumentParser(description=DESCRIPTION)
    parser.add_argument("--width", type=int, default=64, help="Channels of the ResNet-18's first stage.")
    parser.add_argument("--batch_size", type=int, default=16, help="Images per step; each gives two views.")
    parser.add_argument("--image_size", type=int, default=32, help="Side of a view.")
    parser.add_argument("--modes", nargs="+", default=list(MODES), help=f"Which of {', '.join(MODES)}.")
    parser.add_argument("--policy", default="uniform", help="Budgets: uniform (random), fixed (5 steps) or max.")
    parser.add_argument("--repeat", type=int, default=5, help="Rounds after the warm-up.")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto.")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads.")
    parser.add_argument("--output", default=None, help="JSON file to write.")
    options = parser.parse_args()
    for mode in options.modes:
        if mode not in MODES:
            raise ConfigError(f"modes: expected some of {', '.join(MODES)}, got {mode!r}")
    if options.policy not in ("uniform", "fixed", "max"):
        raise ConfigError(f"policy: expected uniform, fixed or max, got {options.policy!r}")
    record = measure(options)
    print(table(record))
    if options.output is not None:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        Path(options.output).write_text(json.dumps(record, indent=2) + "\n")
    return 0


def measure(options: Any) -> dict[str, Any]:
    import torch

    from astra_env.benchmarking.measure import compare, matmul_ceiling
    from astra_env.data import load_dataset
    from astra_env.devices import resolve_device
    from astra_env.trainer import versions

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    base = {
        "device": str(device),
        "target.width": options.width,
        "learner.batch_size": options.batch_size,
        "learner.warmup_epochs": 0,
    }
    dataset = load_dataset("digits", image_size=options.image_size, device=device)
    return {
        "command": " ".join(["scripts/benchmark.py", *sys.argv[1:]]),
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": versions(),
        "views": 2 * options.batch_size,
        "budgets": options.policy,
        "rounds": options.repeat,
        "matmul_flops_per_second": {
            name: matmul_ceiling(device, dtype) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        },
        "modes": compare(options.modes, base, dataset, options.policy, options.repeat),
    }


def table(record: dict[str, Any]) -> str:
    from astra_env.benchmarking.clock import PHASES

    header = ["mode", *PHASES, "step (ms)", "views/s", "attack x", "step x", "F/step"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for mode, entry in record["modes"].items():
        milliseconds = entry["milliseconds"]
        cells = [mode, *(f"{milliseconds[phase]:.1f}" for phase in (*PHASES, "step"))]
        cells.append(f"{entry['views_per_second']:.1f}")
        cells += [
            f"{entry[f'{part}_speedup']:.2f}" if f"{part}_speedup" in entry else "-" for part in ("attack", "step")
        ]
        cells.append(f"{entry['forward_equivalents']['step']:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    ceilings = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in record["matmul_flops_per_second"].items())
    return "\n".join([*lines, f"matmul ceiling (GFLOP/s): {ceilings}"])


if __name__ == "__main__":
    sys.exit(run_main(main))
