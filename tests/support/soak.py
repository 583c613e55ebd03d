"""Soak: many tiny environment steps with resets, forks and saves; memory, open files and processes must stay flat.

    python tests/support/soak.py --steps 10000 --output benchmarks/results/trust/soak.json

Prints a table and exits with 1 when something leaks. Not part of the default test run.
"""

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from astra_env.envs import AttackStrategyEnv
from astra_env.training.trainer import versions

SMALLEST = {
    "target.width": 1,
    "target.blocks": [1, 1, 1, 1],
    "target.hidden_dim": 2,
    "target.feature_dim": 2,
    "learner.batch_size": 4,
    "learner.total_steps": 50,
    "data.max_images": 20,
    "env.chunk_steps": 1,
    "strategy.steps": [1],
}
EVERY = {"fork": 10, "save": 10, "load": 40}
MEMORY_LIMIT = 8.0
"""MiB by which resident memory may grow between the middle of the run, when caches are full, and its end."""
COLUMNS = ("step", "seconds", "memory_mib", "open_files", "children", "threads")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="Environment steps.")
    parser.add_argument("--rows", type=int, default=20, help="Measurements.")
    parser.add_argument("--output", type=Path, default=None, help="JSON file to write.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, counts = soak(options.steps, options.rows)
    leaks = judge(rows)
    print(*(f"leak: {leak}" for leak in leaks), sep="\n") if leaks else print("flat: no leak found")
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(record(options, rows, counts, leaks), indent=1) + "\n")
    return 1 if leaks else 0


def soak(steps: int, measurements: int) -> tuple[list[dict[str, float]], dict[str, int]]:
    """Step an environment through resets, forks, saves and loads; returns measurements and how often each was done."""
    env, rows, counts = AttackStrategyEnv("tiny", SMALLEST), [], dict.fromkeys(("reset", *EVERY), 0)
    env.reset(seed=0)
    env.action_space.seed(0)
    started, every = time.monotonic(), max(1, steps // measurements)
    print(" ".join(f"{name:>10}" for name in COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "env.pt"
        for step in range(1, steps + 1):
            if env.over:
                env.reset()
                counts["reset"] += 1
            env.step(env.action_space.sample())
            due = [name for name, period in EVERY.items() if step % period == 0]
            for name in due:
                counts[name] += 1
            if "fork" in due and not env.over:
                env.fork().step(env.action_space.sample())
            if "save" in due:
                env.save(file)
            if "load" in due:
                env.load(file)
            if step % every == 0:
                rows.append(measure(step, time.monotonic() - started))
                print(" ".join(f"{rows[-1][name]:>10.1f}" for name in COLUMNS), flush=True)
    return rows, counts


def measure(step: int, seconds: float) -> dict[str, float]:
    """Return what this process holds, once garbage is collected."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {
        "step": step,
        "seconds": round(seconds, 1),
        "memory_mib": round(int(status["VmRSS"].split()[0]) / 1024, 2),
        "open_files": len(os.listdir("/proc/self/fd")),
        "children": len(children),
        "threads": int(status["Threads"]),
    }


def judge(rows: list[dict[str, float]]) -> list[str]:
    """Return what grew from the middle of the run, when everything is warm, to its end."""
    middle, end = rows[len(rows) // 2], rows[-1]
    grown = [name for name in ("open_files", "children", "threads") if end[name] > middle[name]]
    leaks = [f"{name} grew from {middle[name]} to {end[name]}" for name in grown]
    memory = end["memory_mib"] - middle["memory_mib"]
    if memory > MEMORY_LIMIT:
        leaks.append(f"memory grew by {memory:.1f} MiB in {end['step'] - middle['step']:.0f} steps")
    return leaks


def record(options: Any, rows: list[dict[str, float]], counts: dict[str, int], leaks: list[str]) -> dict[str, Any]:
    """Return the measurement with what it depends on."""
    return {
        "command": " ".join(["python", "tests/support/soak.py", *sys.argv[1:]]),
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)},
        "versions": versions(),
        "done": {"step": options.steps, **counts},
        "leaks": leaks,
        "rows": rows,
    }


if __name__ == "__main__":
    sys.exit(main())
