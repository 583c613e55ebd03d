"""Paths that users write: ``~`` is a home folder, and what is kept means the same from every folder."""

import os
from pathlib import Path

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
