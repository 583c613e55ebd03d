"""Plain values: what a configuration may hold, made of whatever a caller has at hand."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from astra_env.errors import ConfigError


def plain(value: Any, name: str) -> Any:
    """Return ``value`` as numbers, text, lists and dictionaries that YAML and JSON can hold.

    Mappings (OmegaConf's too) become dictionaries; tuples, ranges, arrays, tensors and other sequences become lists;
    NumPy scalars become numbers; paths become text.

    Args:
        value: what the caller gave.
        name: dotted name of the field, for the message.

    Raises:
        ConfigError: naming the field, for anything else.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(entry, f"{name}.{key}") for key, entry in value.items()}
    if callable(tolist := getattr(value, "tolist", None)):  # arrays, their scalars, tensors
        return plain(tolist(), name)
    if isinstance(value, str | PurePath):
        return str(value)
    if isinstance(value, bool | int | float):
        return next(kind(value) for kind in (bool, int, float) if isinstance(value, kind))
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(entry, f"{name}[{index}]") for index, entry in enumerate(value)]
    raise ConfigError(
        f"{name}: expected a number, text, list or mapping of such, got {type(value).__name__} ({str(value)[:60]!r})"
    )
