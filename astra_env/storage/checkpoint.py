"""Checkpoints: atomic to write, safe to load, whole or refused.

A checkpoint is a ``torch.save`` archive of tensors and plain containers whose zip comment carries the SHA-256 of the
archive, so ``torch.load(path, weights_only=True)`` reads it and a torn or altered file is recognised.
"""

import hashlib
import io
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from astra_env.config.paths import user_path
from astra_env.errors import CheckpointError
from astra_env.storage.foreign import bookkeeping_allowed, plain, refused_class, what_it_is

_UNREADABLE = (
    RuntimeError, EOFError, ValueError, TypeError, AttributeError, LookupError, OSError, AssertionError,
    ArithmeticError, struct.error, MemoryError, NotImplementedError, zipfile.BadZipFile,
)  # fmt: skip
"""What torch.load raises, at one depth or another, for files that are no checkpoints."""
_MARK = b"sha256:"
_END_OF_DIRECTORY = b"PK\x05\x06"
_END_LENGTH = 22
"""Length of a zip archive's last record, whose final two bytes hold the length of the comment behind it."""


def encode(state: Mapping[str, Any]) -> bytes:
    """Return ``state`` (tensors, numbers, strings, lists, dictionaries) as the bytes of a checkpoint."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    raw = buffer.getvalue()
    comment = _MARK + hashlib.sha256(raw).hexdigest().encode()
    return raw[:-2] + struct.pack("<H", len(comment)) + comment


def decode(data: bytes, name: str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return the state held by a checkpoint's bytes; raises CheckpointError naming ``name`` when damaged or unsafe."""
    other = what_it_is(data)
    if other is not None:
        raise CheckpointError(f"{name}: {other}")
    _check_digest(data, name)
    _check_size(data, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with bookkeeping_allowed():
                state = plain(torch.load(io.BytesIO(data), map_location=device, weights_only=True))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{name}: refused, the file holds more than tensors and plain containers{refused_class(error)} and could "
            "run code when loaded; where you trust it, load it with torch and save its state_dict alone"
        ) from error
    except _UNREADABLE as error:
        raise CheckpointError(f"{name}: not a readable checkpoint ({type(error).__name__}); is it complete?") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{name}: expected a dictionary, got {type(state).__name__}")
    _check_tensors(state, name)
    return state


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` so that ``path`` is afterwards either its old self or whole, even through a crash.

    The bytes go to a temporary file beside it, are flushed to the disk, and take the name in one rename.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically; raises CheckpointError when the disk refuses (the old file is then untouched)."""
    path = user_path("checkpoint", path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, encode(state))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot write the checkpoint ({error.strerror}); the previous one is intact; free space or choose "
            "another --run_dir, then --resume"
        ) from error


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint without ever running code from it.

    Foreign files without a digest are accepted as far as ``torch.load(weights_only=True)`` accepts them.

    Raises:
        CheckpointError: for a missing, torn, altered or code-carrying file.
    """
    path = user_path("checkpoint", path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the checkpoint ({error.strerror})") from error
    return decode(data, str(path), device)


def _check_digest(data: bytes, name: str) -> None:
    end = data.rfind(_END_OF_DIRECTORY)
    comment = data[end + _END_LENGTH :]
    if end >= 0 and data[end + _END_LENGTH - 2 : end + _END_LENGTH] != struct.pack("<H", len(comment)):
        raise CheckpointError(f"{name}: the file was cut off or damaged at its end")
    if end >= 0 and len(comment) == len(_MARK) + 64:
        digest = hashlib.sha256(data[: end + _END_LENGTH - 2] + b"\x00\x00").hexdigest().encode()
        if comment != _MARK + digest:
            raise CheckpointError(f"{name}: the file was altered or damaged: its SHA-256 does not match")


def _check_size(data: bytes, name: str) -> None:
    """Refuse an archive that says it unpacks to more than its own size; torch stores tensors as they are."""
    try:
        if not zipfile.is_zipfile(io.BytesIO(data)):
            return
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except _UNREADABLE as error:
        raise CheckpointError(f"{name}: not a readable checkpoint ({type(error).__name__}); is it complete?") from error
    if unpacked > len(data):
        raise CheckpointError(f"{name}: refused, it unpacks to {unpacked} bytes, more than its own {len(data)}")


def _check_tensors(state: Any, name: str) -> None:
    """Refuse tensors that claim more values than the file holds: a few bytes can stand for any number of them."""
    waiting: list[Any] = [state]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)
        elif isinstance(value, torch.Tensor):
            plain = value.layout is torch.strided and value.device.type != "meta"
            if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise CheckpointError(f"{name}: refused, it holds a tensor {tuple(value.shape)} without its values")


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
