"""A run may be resumed elsewhere and write more often, but what it computes must stay the same."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from astra_env.config.dotted import flat, renamed, with_new_names
from astra_env.config.options import SpeedOptions
from astra_env.config.reading import load_config, read_source, to_dict
from astra_env.config.safe_yaml import parse_yaml
from astra_env.errors import CheckpointError, ConfigError
from astra_env.storage.checkpoint import load_checkpoint
from rpat.config import PRESET_PACKAGE, RPATConfig

logger = logging.getLogger(__name__)
FREE = (
    *("device", "run.", "test.", "network.checkpoint", "network.allow_missing"),
    *("data.root", "data.cache", "data.download", "data.device_budget_mib", "data.host_budget_mib"),
    *(f"learner.{option.name}" for option in fields(SpeedOptions) if option.name != "sync_bn"),
)
"""Settings that may change when a run is resumed."""


def config_of(run_dir: Path) -> RPATConfig:
    """Return the configuration of a run directory; raises ConfigError when it holds none."""
    return load_config(RPATConfig, stored_values(run_dir), package=PRESET_PACKAGE)


def stored_values(run_dir: Path) -> dict[str, Any]:
    """Return the nested values of a run's ``config.yaml``; those of an old run in today's names and units.

    Raises ConfigError when there is none.
    """
    values = read_source(run_dir / "config.yaml", PRESET_PACKAGE)
    translated = with_new_names(RPATConfig, values)
    if renamed(RPATConfig, flat(values)) and isinstance(translated.get("run"), dict):
        _count_steps(translated["run"], run_dir / "checkpoints")
    return translated


def check_same_run(config: RPATConfig, stored: str) -> None:
    """Raise ConfigError naming the first setting in which ``config`` differs from the stored YAML of the run."""
    before, now = flat(with_new_names(RPATConfig, _stored(stored))), flat(to_dict(config))
    before = {**_younger(before), **before}
    for name, value in now.items():
        if not name.startswith(FREE) and before.get(name) != value:
            raise ConfigError(
                f"{name}: the run was started with {before.get(name)!r}, got {value!r}; resume it with its own value "
                "or choose another --run_dir"
            )


def _count_steps(run: dict[str, Any], checkpoints: Path) -> None:
    """Turn what an old run counted in epochs into steps."""
    for name, once, usual in (("checkpoint_every", 1, None), ("keep_every", 0, 0)):
        epochs = run.pop(name, once)
        if epochs == once or not isinstance(epochs, int):
            continue
        steps = _steps_per_epoch(checkpoints)
        if steps is not None:
            run[name] = epochs * steps
        else:
            logger.warning("run.%s: %d epochs of unknown length; give steps, else it is %s", name, epochs, usual)


def _steps_per_epoch(checkpoints: Path) -> int | None:
    """Return the steps of an epoch as the newest whole checkpoint tells them; None when no epoch was finished."""
    for path in (checkpoints / "last.pt", checkpoints / "previous.pt"):
        with suppress(CheckpointError, KeyError, TypeError):
            state = load_checkpoint(path)
            epoch, position = int(state["sampler"]["epoch"]), int(state["sampler"]["position"])
            if epoch > 0:
                return (int(state["step"]) - position) // epoch
            return position if position and not state["sums"] else None
    return None


def _younger(before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a run older than they are does not name; it was computed as their defaults say."""
    defaults = flat(to_dict(RPATConfig()))
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
