"""Nested settings and their dotted names, some of which were renamed.

A configuration's dataclass lists those in a class attribute ``renamed``, old name to new one: an error where somebody
writes the old name, a translation where an old run holds it. Names in a free-form dictionary are for its reader to
refuse.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, get_origin, get_type_hints

from astra_env.errors import ConfigError


def flat(values: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """Return every value of a nested mapping, and every empty section, by its dotted name."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{section}{key}.") if isinstance(value, Mapping) and value else {f"{section}{key}": value}
    return found


def set_dotted(nested: dict[str, Any], key: str, value: Any) -> None:
    """Set one value of nested settings by its dotted name; a mapping is merged into what is there."""
    *sections, name = key.split(".")
    for section in sections:
        nested = nested.setdefault(section, {})
        if not isinstance(nested, dict):
            raise ConfigError(f"{key}: {section!r} is not a section")
    if isinstance(value, Mapping) and isinstance(nested.get(name), dict):
        for inner, entry in value.items():
            set_dotted(nested[name], str(inner), entry)
    else:
        nested[name] = dict(value) if isinstance(value, Mapping) else value


def renamed(cls: type, names: Iterable[str]) -> dict[str, str]:
    """Return those of some dotted names that ``cls`` has under another name now, with that name."""
    table: Mapping[str, str] = getattr(cls, "renamed", {})
    return {name: table[name] for name in names if name in table}


def refuse_renamed(cls: type, names: Iterable[str]) -> None:
    """Raise ConfigError naming the new name of the first of some dotted names that has one."""
    for old, new in renamed(cls, names).items():
        if not _is_free(cls, old):
            raise ConfigError(f"{old}: this setting is called {new} now; write {new}")


def with_new_names(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values in which those that were renamed have their new names; what is there under both stays."""
    told = flat(values)
    new = {old: name for old, name in renamed(cls, told).items() if name not in told}
    if not new:
        return dict(values)
    nested: dict[str, Any] = {}
    for name, value in told.items():
        set_dotted(nested, new.get(name, name), value)
    return nested


def _is_free(cls: type, name: str) -> bool:
    """Whether a dotted name lies in a free-form dictionary of a dataclass."""
    hint: Any = cls
    for part in name.split("."):
        if not dataclasses.is_dataclass(hint):
            return get_origin(hint) is dict
        hint = get_type_hints(hint).get(part)
    return False
