"""A run may be resumed elsewhere and write more often, but what it computes must stay the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from astra_env.config.paths import user_path
from astra_env.config.reading import to_dict, to_yaml
from astra_env.config.safe_yaml import parse_yaml
from astra_env.distributed import SharedRun
from astra_env.errors import CheckpointError, ConfigError
from astra_env.storage.room import require_room, state_bytes
from astra_env.storage.run_directory import RunDirectory
from rpat.config import RPATConfig
from rpat.learner import SupervisedLearner

FREE = (
    "device",
    "run",
    "test",
    "network.checkpoint",
    "network.allow_missing",
    "data.root",
    "data.cache",
    "data.download",
    "data.device_budget_mib",
    "data.host_budget_mib",
)
"""Settings that may change when a run is resumed."""


def check_same_run(config: RPATConfig, stored: str) -> None:
    """Raise ConfigError naming the first setting in which ``config`` differs from the stored YAML of the run."""
    before, now = _flat(_stored(stored)), _flat(to_dict(config))
    before = {**_younger(before), **before}
    for name, value in now.items():
        if not name.startswith(FREE) and before.get(name) != value:
            raise ConfigError(
                f"{name}: the run was started with {before.get(name)!r}, got {value!r}; resume it with its own value "
                "or choose another --run_dir"
            )


def run_of(learner: SupervisedLearner, run_dir: str | Path, *, resume: bool, renew: bool) -> SharedRun:
    """Return the run directory of a learner for ``with``; on rank 0 the disk must have room for its checkpoints.

    ``renew``: write the configuration again, since the data of a resumed run has moved.

    Raises:
        RunDirectoryError: when the directory cannot be used or the disk is too full.
    """
    every, folder, text = learner.config.run.keep_every, user_path("run_dir", run_dir), to_yaml(learner.config)
    if learner.world.main:
        kept = learner.epochs // every if every else 0
        require_room(folder, state_bytes(learner.state_dict()), kept, resume=resume)
    return SharedRun(learner.world, folder, lambda: RunDirectory(folder, text, resume=resume, renew=renew))


def _younger(before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a run older than they are does not name; it was computed as their defaults say."""
    defaults = _flat(to_dict(RPATConfig()))
    return {
        name: value
        for name, value in defaults.items()
        if not any(key == name or key.startswith(f"{name}.") for key in before)
    }


def _stored(text: str) -> Mapping[str, Any]:
    values = parse_yaml(text, "last.pt", CheckpointError)
    if not isinstance(values, dict):
        raise CheckpointError("last.pt: holds no configuration of the run; use another checkpoint")
    return values


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
