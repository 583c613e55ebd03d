"""Who owns a run directory: a lock file with the owner's process and host, taken in one step or not at all."""

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from astra_env.errors import RunDirectoryError

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""What file systems without hard links answer."""


def acquire(directory: Path, option: str = "run_dir") -> None:
    """Make this process the owner of ``directory``, which the user gave as ``option``.

    The lock appears with its content in one step (a hard link to a prepared file), so nobody sees it half written. A
    lock whose process is gone from this host is taken over.

    Raises:
        RunDirectoryError: when another process owns it, or one on another host, of which nothing can be known here.
    """
    lock = directory / ".lock"
    prepared = directory / f".lock.{socket.gethostname()}.{os.getpid()}.tmp"
    try:
        with _alone_on_this_host(directory):
            for leftover in directory.glob(f".lock.{socket.gethostname()}.*.tmp"):
                leftover.unlink(missing_ok=True)
            prepared.write_text(json.dumps(_this_process()))
            owner = _read(lock)
            if owner is not None and _is_gone(owner):
                lock.unlink(missing_ok=True)
            try:
                _link(prepared, lock)
            finally:
                prepared.unlink(missing_ok=True)
    except FileExistsError:
        raise RunDirectoryError(
            f"{option}: {directory} is in use by {_read(lock)}; wait for it, stop it, or choose another --{option} "
            f"(delete {lock} if that process is gone)"
        ) from None


def release(directory: Path) -> None:
    """Give the directory free, if this process owns it."""
    lock = directory / ".lock"
    if _read(lock) == json.dumps(_this_process()):
        lock.unlink(missing_ok=True)


def remove_leftovers(directory: Path, folders: Sequence[str] = ("checkpoints",)) -> None:
    """Remove the temporary files that killed owners left there and in ``folders``; only the present owner may."""
    for folder in (directory, *(directory / name for name in folders)):
        for path in folder.glob(".*.tmp"):
            if not path.name.startswith(".lock."):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def owned(directory: Path, option: str, folders: Sequence[str] = ()) -> Iterator[None]:
    """Own ``directory``, made when absent, for a while; see :func:`acquire`.

    Raises RunDirectoryError when it cannot be written or belongs to another process.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        acquire(directory, option)
    except OSError as error:
        raise RunDirectoryError(
            f"{option}: cannot write {directory} ({error.strerror}); choose a writable --{option}"
        ) from error
    try:
        remove_leftovers(directory, folders)
        yield
    finally:
        release(directory)


def _link(prepared: Path, lock: Path) -> None:
    """Give ``prepared`` the name ``lock`` if nobody has it; raises FileExistsError when somebody does."""
    try:
        os.link(prepared, lock)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # Another host that reads it at this very moment takes it for a torn one; without links there is no better way.
        with open(lock, "x") as file:
            file.write(prepared.read_text())


@contextlib.contextmanager
def _alone_on_this_host(directory: Path) -> Iterator[None]:
    """Keep other processes of this host from judging the lock meanwhile: the one judged is then the one removed."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        # Some network file systems have no such locks; the hard link decides there as well.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": _start_of(os.getpid())}


def _start_of(pid: int) -> str | None:
    """Return when a process of this host started, in ticks since boot; tells apart processes of one number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _read(lock: Path) -> str | None:
    try:
        return lock.read_text(errors="replace")
    except FileNotFoundError:
        return None


def _is_gone(content: str) -> bool:
    """Whether the owner is certainly no more, or was never one of ours; a process of another host always may be."""
    try:
        owner = json.loads(content)
        pid, host = int(owner["pid"]), owner["host"]
    except (ValueError, KeyError, TypeError):
        return True
    if host != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    started = owner.get("started")
    return started is not None and started != _start_of(pid)
