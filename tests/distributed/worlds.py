"""Runs a task in several gloo processes of this machine and brings their results back; forked, so imports are paid once.

A task is a function of this folder's ``tasks`` module; it gets the :class:`World` and keyword arguments and returns
plain values and tensors. Processes meet through a file, so no port is needed, and die with their parent's patience.
"""

import multiprocessing
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

PATIENCE = 120.0
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["distributed.tasks", "sklearn.datasets", "torchvision"])


def run_task(folder: Path, size: int, task: str, **arguments: Any) -> list[Any]:
    """Return what every rank's ``task`` returned, in the order of the ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / f"store-{task}-{size}"
    store.unlink(missing_ok=True)
    outputs = [folder / f"{task}-{size}-{rank}.pt" for rank in range(size)]
    processes = [
        CONTEXT.Process(target=_process, args=(rank, size, str(store), task, arguments, str(output)), daemon=True)
        for rank, output in enumerate(outputs)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(PATIENCE)
        assert [process.exitcode for process in processes] == [0] * size, f"{task} on {size} processes"
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    return [torch.load(output, weights_only=False) for output in outputs]


def _process(rank: int, size: int, store: str, task: str, arguments: dict[str, Any], output: str) -> None:
    import torch.distributed as dist

    from astra_env.distributed.start import joined
    from astra_env.distributed.world import ALONE
    from distributed import tasks

    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
        )
    result = getattr(tasks, task)(joined() if size > 1 else ALONE, **arguments)
    torch.save(result, output)
    if size > 1:
        dist.destroy_process_group()
