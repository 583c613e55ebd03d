"""A run may be resumed elsewhere and write more often, but what it computes must stay the same."""

from collections.abc import Mapping
from typing import Any

from astra_env.config.reading import to_dict
from astra_env.config.safe_yaml import parse_yaml
from astra_env.errors import CheckpointError, ConfigError
from rpat.config import RPATConfig

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
