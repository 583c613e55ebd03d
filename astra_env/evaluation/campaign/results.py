"""The result file of an evaluation: always whole, partial until finished, continued by the same command."""

import json
import platform
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from astra_env.distributed import ALONE, World
from astra_env.errors import ConfigError
from astra_env.storage.checkpoint import write_atomically

FILE = "results.json"
PACKAGES = ("astra-env", "torch", "torchvision", "numpy", "pyautoattack")


class ResultFile:
    """Measurements by network and name, written to ``results.json`` after every one.

    A measurement that is there with the same settings is not made again; whatever was measured under other conditions
    is refused, never mixed.

    Args:
        folder: the output folder; created when absent.
        conditions: what every measurement depends on, as plain values.
        world: the ranks that measure together; rank 0 reads and writes the file.

    Raises:
        ConfigError: when the folder cannot be written or its results were made under other conditions.
    """

    def __init__(self, folder: str | Path, conditions: Mapping[str, Any], world: World = ALONE) -> None:
        self.world = world
        self.folder = Path(folder)
        self.path = self.folder / FILE
        self.values: dict[str, Any] = {
            "status": "partial",
            "conditions": dict(conditions),
            "versions": versions(),
            "networks": {},
        }
        if world.main and self.path.exists():
            self._continue(json.loads(json.dumps(self.values["conditions"])))
        self.values["status"] = "partial"
        self.write()

    def _continue(self, conditions: dict[str, Any]) -> None:
        found = read_results(self.folder) or {}
        if not any(record["measurements"] for record in found["networks"].values()):
            return  # an attempt that failed before it measured anything binds nobody
        earlier = found["conditions"]
        for name in sorted({*earlier, *conditions}):
            if earlier.get(name) != conditions.get(name):
                raise ConfigError(
                    f"out: {self.path} was measured with {name} {earlier.get(name)!r}, now it is "
                    f"{conditions.get(name)!r}; choose another --out or delete it"
                )
        self.values = {**found, "versions": self.values["versions"]}

    def open(self, name: str, description: Mapping[str, Any]) -> dict[str, Any]:
        """Return the record of a network, new or continued; raises ConfigError when its weights have changed."""
        networks = self.values["networks"]
        record = networks.setdefault(name, {**description, "measurements": {}})
        if record["sha256"] != description["sha256"]:
            raise ConfigError(
                f"out: {self.path} holds results of other weights of {name!r}; choose another --out or delete it"
            )
        return record

    def trained(self, record: dict[str, Any], description: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Note how a network's classifier was trained; raises ConfigError when another one was measured before."""
        earlier = record.get("training")
        plain = json.loads(json.dumps(settings))
        differs = [name for name in plain if earlier is not None and earlier.get(name) != plain[name]]
        if record["measurements"] and differs:
            name = differs[0]
            raise ConfigError(
                f"out: {self.path} was measured on a classifier trained with {name} {(earlier or {}).get(name)!r}, now "
                f"it is {plain[name]!r}; choose another --out or delete it"
            )
        record["training"] = dict(description)

    def measure(
        self,
        record: dict[str, Any],
        name: str,
        settings: Mapping[str, Any],
        compute: Callable[[], dict[str, Any]],
        *,
        spread: bool = False,
    ) -> dict[str, Any]:
        """Return the measurement ``name``; ``compute`` makes it (plain values) unless it is there already.

        Of several ranks only rank 0 makes it, and only there it is returned, unless it is ``spread``.
        """
        plain = json.loads(json.dumps(settings))
        known = record["measurements"].get(name)
        if self.world.agreed(known is not None and known["settings"] == plain):
            return known or {}
        if not spread and not self.world.main:
            return {}
        started = time.perf_counter()
        result = compute()
        record["measurements"][name] = {
            "settings": plain,
            **result,
            "seconds": round(time.perf_counter() - started, 3),
        }
        self.write()
        return record["measurements"][name]

    def finish(self) -> None:
        """Mark the results complete and write them."""
        self.values["status"] = "complete"
        self.write()

    def write(self) -> None:
        """Write the file atomically, on rank 0; raises ConfigError when the disk refuses."""
        if not self.world.main:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, (json.dumps(self.values, indent=2) + "\n").encode())
        except OSError as error:
            raise ConfigError(f"out: cannot write {self.path} ({error.strerror}); choose a writable --out") from error


def read_results(folder: str | Path) -> dict[str, Any] | None:
    """Return what ``results.json`` in a folder holds, None when it is not there; raises ConfigError when unreadable."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        if not {"status", "conditions", "networks"} <= set(found):
            raise ValueError("other content")
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"out: {path} is not a result file of ours ({error}); choose another --out") from error
    return found


def versions() -> dict[str, str]:
    """Return the versions a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
