"""Paths that users write: ``~`` is a home folder, and what is kept means the same from every folder."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from astra_env.errors import ConfigError


def user_path(field: str, text: str | Path) -> Path:
    """Return a path with ``~`` and ``~user`` expanded; raises ConfigError naming ``field`` where there is no such home.

    A user without an entry in the password file has a home folder only by the variable HOME.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{field}: {str(text)!r} has no known home folder; write the whole path") from error


def absolute(field: str, text: str | Path) -> Path:
    """Return a path from the root of the file system, ``~`` expanded; links are kept."""
    return Path(os.path.abspath(user_path(field, text)))


PATH = {"path": True}
"""Metadata of a configuration field that holds a path: a loaded configuration has it absolute."""


def path_keys(*names: str) -> dict[str, Any]:
    """Return the metadata of a free-form dictionary whose entries of these names are paths."""
    return {"path_keys": names}


def settled(field: str, value: Any, metadata: Mapping[str, Any]) -> Any:
    """Return a field's value with its paths absolute, as ``metadata`` says which these are."""
    if metadata.get("path") and isinstance(value, str):
        return str(absolute(field, value))
    names = metadata.get("path_keys", ())
    if names and isinstance(value, Mapping):
        return {
            key: str(absolute(f"{field}.{key}", entry)) if key in names and isinstance(entry, str) else entry
            for key, entry in value.items()
        }
    return value


def given_option(arguments: Sequence[str], name: str) -> str | None:
    """Return the value that a command line gives to ``--name``, the last one counts; None when it gives none."""
    found = None
    for index, argument in enumerate(arguments):
        if argument.startswith(f"--{name}="):
            found = argument.partition("=")[2]
        elif argument == f"--{name}" and index + 1 < len(arguments):
            found = arguments[index + 1]
    return found
