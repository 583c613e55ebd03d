"""Joining the processes that torchrun has started, and leaving them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from astra_env.compute import resolve_device
from astra_env.distributed.world import ALONE, World
from astra_env.errors import ConfigError

TIMEOUT_SECONDS = 600.0
"""How long a rank waits for the others before it gives up, unless told otherwise."""


def launched() -> bool:
    """Whether torchrun, or a launcher that sets the same variables, has started this process."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def restarted() -> bool:
    """Whether torchrun started this process anew after a rank had failed (``--max-restarts``)."""
    return launched() and _restarts() > 0


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def start(device: str = "auto", timeout: float = TIMEOUT_SECONDS) -> Iterator[World]:
    """Join the processes that torchrun has started; without torchrun this process is alone.

    NCCL between CUDA devices, one for each process; gloo between processes on CPUs.

    Args:
        device: the configured device; decides between the two.
        timeout: seconds after which a rank that hears nothing from another one ends with an error.

    Raises:
        ConfigError: for a device that cannot be had, or more processes than CUDA devices on this machine.
    """
    if not launched():
        yield ALONE
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device("cuda", local) if resolve_device(device).type == "cuda" else torch.device("cpu")
    if place.type == "cuda":
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"device: process {local} of this machine has no CUDA device of its own, there are "
                f"{torch.cuda.device_count()}; lower --nproc-per-node, or use --device cpu"
            )
        torch.cuda.set_device(place)
    backend = "nccl" if place.type == "cuda" else "gloo"
    patience = timedelta(seconds=timeout)
    store, rank, size = next(rendezvous("env://", timeout=patience))
    # torchrun keeps one store over its restarts, with the addresses of processes that are no more.
    fresh = dist.PrefixStore(f"attempt {_restarts()}", store)
    dist.init_process_group(backend, store=fresh, rank=rank, world_size=size, timeout=patience)
    try:
        yield joined(local, place)
    finally:
        dist.destroy_process_group()


def joined(local_rank: int = 0, device: torch.device | None = None) -> World:
    """Return this process's place in the process group that exists already.

    Raises ConfigError when there is none.
    """
    if not dist.is_initialized():
        raise ConfigError("distributed: there is no process group; use torchrun and astra_env.distributed.start")
    if device is None:
        cuda = dist.get_backend() == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        local_rank = device.index or 0
    return World(dist.get_rank(), dist.get_world_size(), local_rank, device)
