"""YAML from files that may be anybody's: plain values only, of a size that the rest of the program can walk through."""

from pathlib import Path
from typing import Any

import yaml

from astra_env.errors import InputError

LIMIT = 100_000
"""Values that a document may hold once every alias is written out."""
_BROKEN = (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError, LookupError, RecursionError)
"""What PyYAML raises for text that is no document of plain values."""


def read_yaml(path: Path, error: type[InputError]) -> Any:
    """Return the plain values of a YAML file; raises ``error`` naming it when it cannot be read."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"config: cannot read {path} ({_one_line(problem)}); give another file") from problem
    return parse_yaml(text, str(path), error)


def parse_yaml(text: str, name: str, error: type[InputError]) -> Any:
    """Return the plain values of a YAML document.

    No tag makes an object. Aliases that expand to more than :data:`LIMIT` values, or into themselves, are refused:
    a file of a few lines can stand for billions.

    Raises:
        error: naming ``name`` and what is wrong with it.
    """
    try:
        values = yaml.safe_load(text)
    except _BROKEN as problem:
        raise error(f"config: {name} is not valid YAML: {_one_line(problem)}") from problem
    if not _is_small(values):
        raise error(f"config: {name} expands to more than {LIMIT} values through its aliases; write them out")
    return values


def _is_small(values: Any) -> bool:
    waiting, count = [values], 0
    while waiting and count <= LIMIT:
        value = waiting.pop()
        inner = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        if isinstance(inner, list | tuple | set):
            waiting.extend(inner)
        count += 1
    return not waiting


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split())
