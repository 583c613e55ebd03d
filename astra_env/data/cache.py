"""Decoded images on disk: written once and whole, used only while the files they came from are unchanged."""

import errno
import hashlib
import math
import os
import shutil
import sys
import tempfile
import warnings
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
_VERSION = 2


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
            "free some, set --data.cache to another disk, or a smaller --data.image_size"
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
        request: gives the image size, the folder for caches and the host budget; more bytes than that stay
            memory-mapped.
        folder: what the cache belongs to, see :func:`places`.
        stem: name of the cache in that place; older caches of the same name are removed.
        files: what the images are made from.
        build: writes the whole uint8 ``(N, 3, H, W)`` array file at the path it is given.

    Returns:
        the images, and the cache's folder when they are memory-mapped.
    """
    found = find_cache(request, folder, stem, files)
    if found is not None:
        return _open(found, request.max_host_bytes)
    stem, name = _names(request, stem, files)
    place = _writable(places(folder, request.cache), request.cache)
    with _exclusive(place):
        if not _usable(place / name):  # another process may have built it while this one waited
            _remove_older(place, stem)
            _write_whole(place / name, build)
    return _open(place / name, request.max_host_bytes)


def find_cache(request: ReadRequest, folder: Path, stem: str, files: list[SourceFile]) -> Path | None:
    """Return the cache of ``files`` when one is there, whole and up to date."""
    _, name = _names(request, stem, files)
    candidates = (place / name for place in places(folder, request.cache))
    return next((path for path in candidates if _usable(path)), None)


def places(folder: Path, cache: Path | None) -> list[Path]:
    """Return where caches of a data set in ``folder`` may lie, the best first.

    With ``cache`` nowhere else; otherwise in the user's cache folder, beside the images, in the folder for temporary
    files.
    """
    key = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
    if cache is not None:
        return [cache / key]
    home, user = user_cache(), getattr(os, "getuid", lambda: "user")()
    temporary = Path(tempfile.gettempdir()) / f"astra_env-{user}"
    return [*([home / "astra_env" / key] if home is not None else []), folder / CACHE_NAME, temporary / key]


def user_cache() -> Path | None:
    """Return the folder for caches of this user; None for one without a home, as in many containers."""
    given = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if given.is_absolute():
        return given
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"])
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"


def _names(request: ReadRequest, stem: str, files: list[SourceFile]) -> tuple[str, str]:
    stem = f"{stem}-{request.image_size or 'native'}"
    return stem, f"{stem}-{digest(files, request.image_size)}.npy"


def _writable(candidates: list[Path], cache: Path | None) -> Path:
    """Return the first place that can be written, with a line when it is not where a user would look for it."""
    reasons = [] if cache is not None or user_cache() is not None else ["this user has no home folder"]
    for place in candidates:
        try:
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            _require_own(place)
            (place / ".lock").touch()
        except OSError as error:
            reasons.append(f"{place} ({error.strerror})")
            continue
        if reasons:
            said = "; ".join(reasons)
            warnings.warn(
                f"data.cache: decoded images are kept in {place} (cannot be used: {said}); choose another place with "
                "--data.cache",
                stacklevel=2,
            )
        return place
    raise DataError(f"data.cache: cannot write {' nor '.join(reasons)}; set --data.cache to a writable folder")


def _require_own(place: Path) -> None:
    """Raise PermissionError for a folder among the temporary files that somebody else may have filled."""
    parent = place.parent
    if parent.parent == Path(tempfile.gettempdir()) and hasattr(os, "getuid") and parent.stat().st_uid != os.getuid():
        raise PermissionError(errno.EACCES, "belongs to another user")


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
        raise DataError(
            f"{path}: cannot write the decoded images ({error}); free disk space or set --data.cache to another disk"
        ) from error
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
