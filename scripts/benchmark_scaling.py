"""Count what processes send each other in a training step, check the formula, and carry it over to 64 GPUs on paper.

python scripts/benchmark_scaling.py --output benchmarks/results/scaling

The counted steps run in 2 and 4 gloo processes on this machine's CPU. Where there are fewer cores than processes they
cannot be faster than one; bytes do not depend on that. The extrapolation is arithmetic on stated assumptions.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from benchmarking.traffic import Cluster, Workload, broadcast_bytes, extrapolate, ring_bytes, sent_bytes

from astra_env.config.command_line import run_main
from astra_env.training.trainer import versions

SIZES = (1, 2, 4)
RANKS = [1, 2, 4, 8, 16, 32, 64]
CLUSTER = Cluster(flops=5e13, bandwidth=2.5e10, latency=1e-5)
"""Assumed: 50 TFLOP/s sustained by a GPU, 200 Gbit/s from GPU to GPU over the slowest link, 10 microseconds a hop, and
nothing hidden behind computation."""
RESNET18 = 13_800_000
"""Parameters of the target network, about; its projection included."""
CIFAR = Workload(RESNET18, 40_000, 512, 3 * 32 * 32, 256, 14, 8.5, 1.12e9)
LARGE = Workload(RESNET18, 40_000, 512, 3 * 224 * 224, 128, 14, 8.5, 3.6e9)
SCENARIOS: dict[str, tuple[Workload, float, int | None]] = {
    "32 px, 256 views a GPU, improved policy": (CIFAR, 4 / 16, None),
    "32 px, 256 views a GPU, paper policy": (CIFAR, 1.3, None),
    "32 px, 1024 views in all, improved policy": (CIFAR, 4 / 16, 1024),
    "224 px, 128 views a GPU, improved policy": (LARGE, 4 / 16, None),
}
"""Workload, the policy's work on a view in forward passes of the target network, and views in all if fixed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/scaling"))
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    measured = [measure(size, options.steps) for size in SIZES]
    results: dict[str, Any] = {
        "command": f"scripts/benchmark_scaling.py --steps {options.steps}",
        "machine": {"cores": os.cpu_count(), **versions()},
        "note": f"{max(SIZES)} processes on {os.cpu_count()} cores: seconds say nothing of scaling, bytes do",
        "measured": measured,
        "extrapolated": {name: scenario(*values) for name, values in SCENARIOS.items()},
    }
    write(results, options.output)
    for run in measured:
        print(
            run["ranks"], "ranks: counted", run["counted_bytes_per_step"], "predicted", run["predicted_bytes_per_step"]
        )
    for name, prediction in results["extrapolated"].items():
        print(f"{name}: efficiency at 64 ranks {prediction['rows'][-1]['efficiency']:.2f}")
    return 0


def scenario(work: Workload, policy: float, total: int | None) -> dict[str, Any]:
    work = Workload(**{**vars(work), "policy_flops_per_view": policy * work.flops_per_view})
    return extrapolate(work, CLUSTER, RANKS, total)


def write(results: dict[str, Any], folder: Path) -> None:
    from astra_env.plotting.scaling import plot_scaling
    from astra_env.storage.checkpoint import write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "scaling.json", (json.dumps(results, indent=2) + "\n").encode())
    plot_scaling(results, folder / "scaling.png")


def measure(size: int, steps: int) -> dict[str, Any]:
    """Train a few steps on ``size`` processes and return what rank 0 has counted."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work_as, args=(size, folder, steps), nprocs=size)
        return json.loads((Path(folder) / "result.json").read_text())


def work_as(rank: int, size: int, folder: str, steps: int) -> None:
    from astra_env.distributed.start import joined
    from astra_env.distributed.world import ALONE

    torch.set_num_threads(1)
    if size == 1:
        found = train(ALONE, steps)
    else:
        patience = timedelta(seconds=120)
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=patience
        )
        found = train(joined(), steps)
        dist.destroy_process_group()
    if rank == 0:
        (Path(folder) / "result.json").write_text(json.dumps(found))


def train(world: Any, steps: int) -> dict[str, Any]:
    import agents
    from astra_env.config.reading import load_config
    from astra_env.config.schema import ExperimentConfig
    from astra_env.learner.contrastive import ContrastiveLearner
    from astra_env.learner.protocol import interact

    wide = {"target.width": 16, "target.feature_dim": 64, "target.hidden_dim": 128}
    learner = ContrastiveLearner(load_config(ExperimentConfig, "tiny", wide), world=world)
    policy = agents.make("random", context=agents.Context(learner.space))
    interact(learner, policy)
    world.traffic.clear()
    started, iterations = time.perf_counter(), []
    for _ in range(steps):
        report = interact(learner, policy)
        world.maximum(0)  # what the trainer asks in every step: shall we stop?
        iterations.append(int(report.strategy.steps.max()))  # type: ignore[union-attr]
    seconds = (time.perf_counter() - started) / steps
    buffers = [value.numel() for name, value in learner.target.named_buffers() if "running" in name]
    own = Workload(
        parameters=sum(p.numel() for p in learner.target.parameters()),
        statistics=sum(buffers),
        feature_dim=64,
        pixels=3 * 8 * 8,
        own_views=len(report.views),
        iterations=0,
        mean_steps=0.0,
        flops_per_view=0.0,
    )
    each = [sent_bytes(Workload(**{**vars(own), "iterations": count})) for count in iterations]
    predicted = {name: sum(entry[name] for entry in each) / steps for name in each[0]}
    predicted["broadcast"] = broadcast_bytes(learner.views_per_step)
    return {
        "ranks": world.size,
        "views_of_a_rank": len(report.views),
        "iterations": iterations,
        "seconds_per_step": seconds,
        "counted_bytes_per_step": {name: count / steps for name, count in world.traffic.items()},
        "predicted_bytes_per_step": {name: value if world.size > 1 else 0 for name, value in predicted.items()},
        "ring_bytes_per_step": ring_bytes({name: int(value) for name, value in predicted.items()}, world.size),
    }


if __name__ == "__main__":
    sys.exit(run_main(main))
