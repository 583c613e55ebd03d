"""Decoded images on disk: written once and whole, used only while the files they came from are unchanged."""

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from astra_env.data.request import ReadRequest
from astra_env.errors import DataError

try:
    import fcntl
except ImportError:  # Windows: two processes may then decode the same files, and both results are whole.
    fcntl = None  # type: ignore[assignment]

CACHE_NAME = ".astra_cache"
_VERSION = 1


class SourceFile(NamedTuple):
    """A file that a cache is made from: its path, its name in the data set, size in bytes, mtime in nanoseconds."""

    path: str
    name: str
    size: int
    modified: int


def digest(files: Iterable[SourceFile], image_size: int | None) -> str:
    """Return a name for the state of ``files``: it changes with any name, size or modification time."""
    state = hashlib.sha256(f"{_VERSION} {image_size}\n".encode())
    for file in files:
        state.update(os.fsencode(file.name) + f"\0{file.size} {file.modified}\n".encode())
    return state.hexdigest()[:20]


def begin_array(path: Path, shape: tuple[int, ...]) -> int:
    """Create a uint8 ``.npy`` file of ``shape`` to be filled in; returns where its first byte of data goes.

    Raises:
        DataError: when the disk has too little room.
    """
    needed, free = math.prod(shape), shutil.disk_usage(path.parent).free
    if needed > free:
        raise DataError(
            f"{path.parent}: the decoded images need {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB; "
            "free some, or set a smaller --data.image_size"
        )
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        start = file.tell()
        file.truncate(start + needed)
    return start


def cached_images(
    request: ReadRequest, folder: Path, stem: str, files: list[SourceFile], build: Callable[[Path], None]
) -> tuple[Tensor, Path | None]:
    """Return the images made from ``files``, building the cache when it is missing or stale.

    Args:
        request: gives the image size and the host budget; more bytes than that stay memory-mapped.
        folder: the cache lies in its ``.astra_cache``, or in the user's cache folder where that is not writable.
        stem: name of the cache in that folder; older caches of the same name are removed.
        files: what the images are made from.
        build: writes the whole uint8 ``(N, 3, H, W)`` array file at the path it is given.

    Returns:
        the images, and the cache's folder when they are memory-mapped.
    """
    stem = f"{stem}-{request.image_size or 'native'}"
    name = f"{stem}-{digest(files, request.image_size)}.npy"
    places = _places(folder)
    for place in places:
        if _usable(place / name):
            return _open(place / name, request.max_host_bytes)
    place = _writable(places)
    with _exclusive(place):
        if not _usable(place / name):  # another process may have built it while this one waited
            _remove_older(place, stem)
            _write_whole(place / name, build)
    return _open(place / name, request.max_host_bytes)


def _places(folder: Path) -> tuple[Path, Path]:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    user = Path(home).expanduser() / "astra_env" / hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
    return folder / CACHE_NAME, user


def _writable(places: Iterable[Path]) -> Path:
    reasons = []
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            (place / ".lock").touch()
        except OSError as error:
            reasons.append(f"{place} ({error.strerror})")
        else:
            return place
    raise DataError(
        f"data cache: cannot write {' nor '.join(reasons)}; make one writable or point XDG_CACHE_HOME elsewhere"
    )


@contextmanager
def _exclusive(place: Path) -> Iterator[None]:
    """Let one process build at a time; where the file system has no locks, several build and the last one stays."""
    with (place / ".lock").open("w") as lock:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_older(place: Path, stem: str) -> None:
    for old in [*place.glob(f"{stem}-*.npy"), *place.glob(f".{stem}-*.tmp")]:
        old.unlink(missing_ok=True)


def _write_whole(path: Path, build: Callable[[Path], None]) -> None:
    part = path.with_name(f".{path.stem}.{os.getpid()}.tmp")
    try:
        build(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot write the decoded images ({error}); free some disk space") from error
    finally:
        part.unlink(missing_ok=True)


def _usable(path: Path) -> bool:
    """Whether the file is a whole array of images; a damaged one is built again."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return array.dtype == np.uint8 and array.ndim == 4


def _open(path: Path, max_host_bytes: int) -> tuple[Tensor, Path | None]:
    if path.stat().st_size <= max_host_bytes:
        return torch.from_numpy(np.load(path)), None
    # Copy-on-write: torch wants a writable array, the file must never change.
    return torch.from_numpy(np.load(path, mmap_mode="c")), path.parent
