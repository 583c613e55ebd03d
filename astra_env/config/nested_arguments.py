"""Options that reach into dictionaries of dictionaries: ``--learner.kind_args.network.width 8``."""

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, get_origin, get_type_hints

from astra_env.config.safe_yaml import parse_yaml
from astra_env.errors import ConfigError


def gather_nested(arguments: Sequence[str], schema: type, base: Mapping[str, Any]) -> list[str]:
    """Return the command line with every such option merged into one for the entry of the dictionary that it changes.

    The parser would replace the entry (``network``) by what the last option says of it, and take numbers for text.

    Args:
        arguments: the command line.
        schema: the dataclass it is parsed into.
        base: nested values of the configuration files on the command line, into which options are merged.
    """
    kept: list[str] = []
    entries: dict[str, Any] = {}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, value = argument.partition("=")
        place = _split(name.removeprefix("--"), schema) if name.startswith("--") else None
        if place is None:
            kept.append(argument)
            continue
        if not equals and not waiting:
            raise ConfigError(f"{name.removeprefix('--')}: expected a value")
        entry, inner = place
        if entry not in entries:
            found = copy.deepcopy(_lookup(base, entry.split(".")))
            entries[entry] = found if isinstance(found, dict) else {}
        text = value if equals else waiting.pop(0)
        _assign(entries[entry], inner, parse_yaml(text, name.removeprefix("--"), ConfigError))
    return [*kept, *(f"--{entry}={json.dumps(value)}" for entry, value in entries.items())]


def _split(name: str, schema: type) -> tuple[str, list[str]] | None:
    """Return the entry of a free-form dictionary that ``name`` reaches into, and the keys within; None if it does not.

    ``learner.kind_args.network.width`` -> ``("learner.kind_args.network", ["width"])``.
    """
    parts = name.split(".")
    hint: Any = schema
    for index, part in enumerate(parts):
        hint = get_type_hints(hint).get(part)
        if get_origin(hint) is dict:
            inner = parts[index + 2 :]
            return (".".join(parts[: index + 2]), inner) if inner else None
        if not dataclasses.is_dataclass(hint):
            return None
    return None


def _lookup(values: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _assign(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    *sections, last = keys
    for section in sections:
        inner = values.get(section)
        values[section] = inner if isinstance(inner, dict) else {}
        values = values[section]
    values[last] = value
