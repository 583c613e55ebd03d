"""Files that other programs wrote: plain bookkeeping beside the weights is read, and what is no checkpoint is named.

Nothing of these files is run: classes that only hold values are replaced by stand-ins defined here, whatever their
state says; every other class stays refused.
"""

import math
import re
from typing import Any

import numpy as np
import torch
from torch.serialization import safe_globals

NUMBERS = {*"?bBhHiIlLqQefd", *(f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8)), "b1"}
"""NumPy's type codes of plain numbers."""
_KINDS = (
    (re.compile(rb"version https://git-lfs"), "is a Git-LFS pointer, not the file; run 'git lfs pull' where it lies"),
    (
        re.compile(rb"\s*(<!doctype html|<html|<\?xml|<head)", re.IGNORECASE),
        "is a web page, not the file: the link led to a sign-in or warning page; download the file itself",
    ),
    (re.compile(rb'\s*\{\s*"(error|message)"', re.IGNORECASE), "is a server's error message; download it again"),
    (re.compile(rb".{257}ustar", re.DOTALL), "is a tar archive; unpack it and give the checkpoint inside"),
    (re.compile(rb"\x1f\x8b"), "is compressed by gzip; unpack it and give the checkpoint inside"),
    (re.compile(rb"BZh|\xfd7zXZ|7z\xbc\xaf"), "is compressed; unpack it and give the checkpoint inside"),
    (re.compile(rb"\x89HDF"), "is an HDF5 file, not PyTorch's; convert its weights to a state dict"),
    (re.compile(rb".{8}\{\"", re.DOTALL), "is a safetensors file; give it the suffix .safetensors"),
)  # fmt: skip


class _Values:
    """Stands for an object that holds named values, such as ``argparse.Namespace``."""


class _Type:
    """Stands for a NumPy type."""

    def __init__(self, code: object = "", *rest: object) -> None:
        self.code = str(code)
        self.swapped = False

    def __setstate__(self, state: Any) -> None:
        self.swapped = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"

    def read(self, data: object, count: int) -> np.ndarray | None:
        """Return ``count`` numbers, or None when this is no type of plain numbers or the bytes do not fit."""
        raw = data.encode("latin1") if isinstance(data, str) else data
        if self.code not in NUMBERS or not isinstance(raw, bytes):
            return None
        kind = np.dtype(self.code).newbyteorder(">" if self.swapped else "<")
        return np.frombuffer(raw, kind) if len(raw) == count * kind.itemsize else None


class _Array:
    """Stands for a NumPy array."""

    values: Any = None

    def __init__(self, *rest: object) -> None:
        """Whatever it is made from, its values come with its state."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _Type):
            return
        _, shape, kind, columns_first, data = state
        sides = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
        numbers = kind.read(data, math.prod(shape)) if sides else None
        if numbers is not None:
            own = numbers.astype(numbers.dtype.newbyteorder("="))
            self.values = torch.from_numpy(own.reshape(shape, order="F" if columns_first else "C").copy())


def _scalar(kind: object = None, data: object = None) -> Any:
    numbers = kind.read(data, 1) if isinstance(kind, _Type) else None
    return None if numbers is None else numbers[0].item()


def _default_dict(*factory: object) -> dict[Any, Any]:
    return {}


def _path(*parts: object) -> str:
    return "/".join(str(part) for part in parts)


_STAND_INS: list[Any] = [
    *((_Values, name) for name in ("argparse.Namespace", "types.SimpleNamespace")),
    *((_path, f"pathlib.{home}{kind}Path") for home in ("", "_local.") for kind in ("Posix", "PurePosix", "Windows")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_Array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    (_Array, "numpy.ndarray"),
    (_Type, "numpy.dtype"),
    (_default_dict, "collections.defaultdict"),
    *((kind, f"builtins.{kind.__name__}") for kind in (list, dict, int, float, str, bool, set, tuple)),
]


def bookkeeping_allowed() -> safe_globals:
    """Return a context in which ``torch.load(weights_only=True)`` reads classes that only hold values."""
    return safe_globals(_STAND_INS)


def plain(value: Any) -> Any:
    """Return what was loaded with plain containers and numbers in the place of the stand-ins; the rest stays itself."""
    return _plain(value, {})


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """Return a value's plain form; ``done`` holds the containers met so far, which may hold themselves."""
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, _Type):
        return value.code
    if isinstance(value, _Values):
        value = vars(value)
    if isinstance(value, dict):
        done[id(value)] = value
        for name, entry in value.items():
            value[name] = _plain(entry, done)
    elif type(value) is list:
        done[id(value)] = value
        value[:] = [_plain(entry, done) for entry in value]
    elif type(value) is tuple:
        done[id(value)] = value
        done[id(value)] = tuple(_plain(entry, done) for entry in value)
        return done[id(value)]
    return value


def what_it_is(data: bytes) -> str | None:
    """Return what a file is that is no checkpoint, and the remedy, by its first bytes; None for one that may be."""
    if not data:
        return "is empty; copy or download it again"
    head = data[:1024]
    return next((sentence for pattern, sentence in _KINDS if pattern.match(head)), None)


def refused_class(error: Exception) -> str:
    """Return the name of the class that was refused, in words; nothing when the error does not say."""
    found = re.search(r"(?:GLOBAL|class|function)\s+([A-Za-z_][\w.]*\.[A-Za-z_]\w*)", str(error))
    return f" (an object of {found[1]})" if found else ""
