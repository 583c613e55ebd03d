"""Runs a task in several gloo processes of this machine and brings their results back; imports are paid once.

A task is a function of this folder's ``tasks`` module; it gets the :class:`World` and keyword arguments and returns
plain values and tensors. Processes meet through a file, so no port is needed, and die with their parent's patience.
"""

import multiprocessing
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

PATIENCE = 120.0
PRELOADED = [
    "agents.reinforce",
    "agents.static",
    "astra_env.training.trainer",
    "astra_env.envs",
    "rpat.trainer",
    "sklearn.datasets",
]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED)


def run_tasks(folder: Path, size: int, tasks: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what every rank's tasks returned, by name, in the order of the ranks.

    Args:
        folder: where processes meet and leave results.
        size: number of processes.
        tasks: arguments by name; ``name`` or ``name:label`` calls the task ``name``.
    """
    store = folder / f"store-{uuid.uuid4().hex}"
    outputs = [store.with_suffix(f".{rank}.pt") for rank in range(size)]
    processes = [
        CONTEXT.Process(target=_process, args=(rank, size, str(store), tasks, str(output)), daemon=True)
        for rank, output in enumerate(outputs)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + PATIENCE
    try:
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
        assert [process.exitcode for process in processes] == [0] * size, f"{list(tasks)} on {size} processes"
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    return [torch.load(output, weights_only=False) for output in outputs]


def run_task(folder: Path, size: int, task: str, **arguments: Any) -> list[Any]:
    """Return what one task returned on every rank."""
    return [found[task] for found in run_tasks(folder, size, {task: arguments})]


def _process(rank: int, size: int, store: str, wanted: dict[str, dict[str, Any]], output: str) -> None:
    import tasks
    import torch.distributed as dist

    from astra_env.distributed.start import joined
    from astra_env.distributed.world import ALONE

    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
        )
    world = joined() if size > 1 else ALONE
    found = {name: getattr(tasks, name.partition(":")[0])(world, **arguments) for name, arguments in wanted.items()}
    torch.save(found, output)
    if size > 1:
        dist.destroy_process_group()
