"""The configuration of a run that is continued: read from its directory, and open about the code it names."""

import logging
import re
from pathlib import Path
from typing import TypeVar

from astra_env.config.dotted import flat, with_new_names
from astra_env.config.reading import PRESET_PACKAGE, load_config, read_source
from astra_env.errors import RunDirectoryError

C = TypeVar("C")
logger = logging.getLogger(__name__)
_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def config_of_run(cls: type[C], run_dir: Path, *, package: str = PRESET_PACKAGE, data_root: str | None = None) -> C:
    """Load ``config.yaml`` of a run directory as the dataclass ``cls``.

    To continue a run is to use the configuration in its directory, ``module:attribute`` names included; they are named
    in a warning before they are imported. What checkpoints say of their configuration is never imported. Keys that were
    renamed since have their new names. ``data_root``: where the data has moved to; None for where it was.

    Raises:
        RunDirectoryError: when there is none.
        ConfigError: when it cannot be used.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise RunDirectoryError(f"run_dir: there is no run in {run_dir} (no config.yaml); start one without --resume")
    values = with_new_names(cls, read_source(path, package))
    for name, value in flat(values).items():
        if isinstance(value, str) and _CODE.fullmatch(value):
            logger.warning("%s: %s imports your code %r", path, name, value)
    return load_config(cls, values, {} if data_root is None else {"data.root": data_root}, package=package)
