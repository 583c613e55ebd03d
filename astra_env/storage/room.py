"""Whether the disk has room for what a run is going to write."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from astra_env.errors import RunDirectoryError

AT_ONCE = 3
"""Checkpoints that lie there together: the last one, the one before it, and the one that is being written."""


def state_bytes(state: Any) -> int:
    """Return how many bytes the tensors of a state take."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(state_bytes(entry) for entry in state.values())
    return sum(state_bytes(entry) for entry in state) if isinstance(state, list | tuple) else 0


def require_room(run_dir: Path, checkpoint_bytes: int, kept: int = 0, *, resume: bool = False) -> None:
    """Raise RunDirectoryError unless the disk takes a run's checkpoints.

    Args:
        run_dir: where they go; it need not exist yet.
        checkpoint_bytes: size of one.
        kept: how many are kept for good beside the last ones.
        resume: the run has its checkpoints already, so that only the next one must fit.
    """
    folder = run_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    needed = checkpoint_bytes * (1 if resume else AT_ONCE + kept)
    try:
        total, _, free = shutil.disk_usage(folder)
    except OSError:
        return  # the place cannot be used, which its owner says better
    if needed > free and total:  # a file system of no size, such as /proc, says why it refuses by itself
        raise RunDirectoryError(
            f"run_dir: the checkpoints need {_size(needed)}, the disk of {folder} has {_size(free)}; "
            "make room, choose another --run_dir, or keep fewer with a higher --run.keep_every"
        )


def _size(count: int) -> str:
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if count >= unit), (1e3, "kB"))
    return f"{count / unit:.1f} {name}"
