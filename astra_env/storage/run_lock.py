"""Who owns a run directory: a lock that the system frees when its process ends, and the name of its owner in it."""

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from astra_env.errors import RunDirectoryError

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""What file systems without hard links answer."""
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What file systems without the system's locks answer, beside ENOSYS, which filelock knows."""


def acquire(directory: Path, option: str = "run_dir") -> BaseFileLock:
    """Make this process the owner of ``directory``, which the user gave as ``option``, until :func:`release`.

    Keep the lock that it returns: one that is forgotten is free.

    The system frees the lock of a process that is gone. On file systems without such locks the file itself is the lock;
    then, too, one whose process is gone from this host is taken over, and one of another host never.

    Raises:
        RunDirectoryError: when another process owns it, or one on another host, of which nothing can be known here.
    """
    path = directory / ".lock"
    try:
        lock = _locked(path)
        # Some network file systems keep the locks of every host apart, so the name in the file counts as well.
        if not isinstance(lock, SoftFileLock) and _host(path) not in (None, socket.gethostname()):
            lock.release()
            raise Timeout(str(path))
    except Timeout:
        raise RunDirectoryError(
            f"{option}: {directory} is in use by {_content(path)}; wait for it, stop it, or choose another --{option} "
            f"(delete {path} if that process is gone)"
        ) from None
    if not isinstance(lock, SoftFileLock):
        path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    return lock


def release(lock: BaseFileLock) -> None:
    """Give the directory free."""
    if lock.is_locked:
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()  # while it is still ours: whoever opened it meanwhile looks again
        lock.release()


def remove_leftovers(directory: Path, folders: Sequence[str] = ("checkpoints",)) -> None:
    """Remove the temporary files that killed owners left there and in ``folders``; only the present owner may."""
    for folder in (directory, *(directory / name for name in folders)):
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def owned(directory: Path, option: str, folders: Sequence[str] = ()) -> Iterator[None]:
    """Own ``directory``, made when absent, for a while; see :func:`acquire`.

    Raises RunDirectoryError when it cannot be written or belongs to another process.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = acquire(directory, option)
    except OSError as error:
        raise RunDirectoryError(
            f"{option}: cannot write {directory} ({error.strerror}); choose a writable --{option}"
        ) from error
    try:
        remove_leftovers(directory, folders)
        yield
    finally:
        release(lock)


def _locked(path: Path) -> BaseFileLock:
    """Lock ``path`` by the system's means, else by its existence; raises Timeout when somebody has it."""
    lock: BaseFileLock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        if not _content(path):
            path.unlink(missing_ok=True)  # what the attempt has left
        lock = SoftFileLock(path, timeout=0, thread_local=False)
        lock.acquire()
    return lock


def _content(path: Path) -> str:
    """Return what a lock file says of its owner, on one line."""
    try:
        return " ".join(path.read_text(errors="replace").split())
    except FileNotFoundError:
        return ""


def _host(path: Path) -> str | None:
    """Return the host that a lock file names, None for a new or a torn one."""
    try:
        return str(json.loads(_content(path))["host"])
    except (ValueError, KeyError, TypeError):
        return None
