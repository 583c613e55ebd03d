"""The configuration of a run that is continued: read from its directory, and open about the code it names."""

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from astra_env.config.reading import PRESET_PACKAGE, load_config, read_source
from astra_env.errors import RunDirectoryError

C = TypeVar("C")
logger = logging.getLogger(__name__)
MOVED = {"learner.kind_args.norm": "learner.norm"}
"""Settings that run directories of 0.1.0 have in another place."""
_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def config_of_run(cls: type[C], run_dir: Path, *, package: str = PRESET_PACKAGE, data_root: str | None = None) -> C:
    """Load ``config.yaml`` of a run directory as the dataclass ``cls``.

    To continue a run is to use the configuration in its directory, ``module:attribute`` names included; they are named
    in a warning before they are imported. What checkpoints say of their configuration is never imported. ``data_root``:
    where the data has moved to; None for where it was.

    Raises:
        RunDirectoryError: when there is none.
        ConfigError: when it cannot be used.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise RunDirectoryError(f"run_dir: there is no run in {run_dir} (no config.yaml); start one without --resume")
    values = read_source(path, package)
    for name, value in _code_names(values):
        logger.warning("%s: %s imports your code %r", path, name, value)
    for old, new in MOVED.items():
        _move(values, old.split("."), new.split("."))
    return load_config(cls, values, {} if data_root is None else {"data.root": data_root}, package=package)


def _move(values: dict[str, Any], old: list[str], new: list[str]) -> None:
    """Give the value under the keys ``old``, where there is one, to the keys ``new``."""
    section: Any = values
    for key in old[:-1]:
        section = section.get(key) if isinstance(section, Mapping) else None
    if not isinstance(section, dict) or old[-1] not in section:
        return
    value = section.pop(old[-1])
    for key in new[:-1]:
        values = values.setdefault(key, {})
    values[new[-1]] = value


def _code_names(values: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _code_names(value, f"{section}{key}.")
        elif isinstance(value, str) and _CODE.fullmatch(value):
            yield f"{section}{key}", value
