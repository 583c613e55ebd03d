"""How configurations are read: presets, YAML files, mappings and command lines over one typed parser.

Works for any tree of dataclasses; the supervised trainer uses it for its own.
"""

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast, get_args, get_type_hints

import jsonargparse
import yaml

from astra_env.config.dotted import drop_arguments, flat, refuse_renamed, set_dotted
from astra_env.config.lists import gather, spread
from astra_env.config.nested_arguments import gather_nested
from astra_env.config.paths import settled, user_path
from astra_env.config.safe_yaml import read_yaml
from astra_env.config.types import bare, complaint
from astra_env.errors import ConfigError

C = TypeVar("C")
PRESET_PACKAGE = "astra_env.config.presets"


class HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions, so that examples stay readable."""


class _Parser(jsonargparse.ArgumentParser):
    """A parser whose complaints are ConfigErrors of one line; ``schema`` is the dataclass it was built for."""

    schema: type | None = None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigError(complaint(message, self.schema)) from ex


def presets(package: str = PRESET_PACKAGE) -> list[str]:
    """Return the names of the presets shipped with ``package``, sorted."""
    files = resources.files(package).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in files if entry.name.endswith(".yaml"))


def build_parser(cls: type, *, package: str = PRESET_PACKAGE, description: str = "") -> jsonargparse.ArgumentParser:
    """Return a parser with ``--config`` and one typed, dotted option per field of the dataclass ``cls``."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(
        usage="%(prog)s [--config PRESET|FILE.yaml] [--FIELD VALUE ...] [OPTION ...]",
        description=description,
        formatter_class=HelpFormatter,
        exit_on_error=False,
        default_env=False,
        allow_abbrev=False,
    )
    names = ", ".join(presets(package))
    parser.add_argument(
        "--config", action="config", metavar="PRESET|FILE.yaml", help=f"Preset ({names}) or YAML file; later wins."
    )
    parser.add_class_arguments(cls)
    parser.schema = cls
    return parser


def load_config(
    cls: type[C],
    source: str | Path | Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    package: str = PRESET_PACKAGE,
) -> C:
    """Build the dataclass ``cls`` from a preset name, YAML path or mapping, and dotted overrides.

    Args:
        cls: the configuration's dataclass.
        source: preset name, path of a YAML file, nested mapping, or None for the defaults.
        overrides: values by dotted key, such as ``{"learner.batch_size": 16}``; nested mappings work as well.
        package: where presets are shipped.

    Raises:
        ConfigError: naming the key and value for unknown keys, wrong types and values out of range.
    """
    nested = read_source(source, package)
    drop_arguments(cls, nested, flat(overrides or {}))
    for key, value in (overrides or {}).items():
        set_dotted(nested, key, value)
    refuse_renamed(cls, flat(nested))
    check_keys(cls, nested)
    parser = build_parser(cls, package=package)
    try:
        namespace = parser.parse_object(nested)
    except (jsonargparse.ArgumentError, TypeError, ValueError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(complaint(str(error), cls)) from error
    return from_dict(cls, namespace.as_dict())


def parse_command_line(
    parser: jsonargparse.ArgumentParser,
    argv: Sequence[str] | None = None,
    *,
    package: str = PRESET_PACKAGE,
    stored: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Parse ``argv`` (default the process's own) and return every value as a nested dictionary.

    ``--config`` takes preset names as well as files; ``stored`` values, of a run that goes on, come before all of it.
    Raises ConfigError instead of exiting.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    base = read_source(stored)
    _require_plain(parser, "the run", base)
    before = [f"--config={yaml.safe_dump(base)}"] if stored else []
    for index, argument in enumerate(arguments):
        if argument == "--config" and index + 1 < len(arguments):
            path = _checked_file(parser, arguments[index + 1], package)
            arguments[index + 1] = str(path)
        elif argument.startswith("--config="):
            path = _checked_file(parser, argument.partition("=")[2], package)
            arguments[index] = f"--config={path}"
        else:
            continue
        for key, value in read_source(path, package).items():
            set_dotted(base, key, value)
    several = [name for action in parser._actions if action.nargs in ("+", "*") for name in action.option_strings]
    arguments = spread(arguments, several)
    schema = getattr(parser, "schema", None)
    if schema is not None:
        refuse_renamed(schema, [*flat(base), *(name[2:].partition("=")[0] for name in arguments if name[:2] == "--")])
        arguments = gather(arguments, schema)
        dropped = drop_arguments(schema, base, _given(arguments))
        arguments = gather_nested(_with_empty(arguments, dropped), schema, base)
    try:
        namespace = parser.parse_args([*before, *arguments])
    except (jsonargparse.ArgumentError, TypeError, ValueError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(complaint(str(error), schema)) from error
    values = namespace.as_dict()
    values.pop("config", None)
    return values


def _given(arguments: list[str]) -> dict[str, str]:
    """Return what follows each option of a command line, as text."""
    following = {
        word[2:]: value for word, value in zip(arguments, [*arguments[1:], ""], strict=True) if word[:2] == "--"
    }
    return following | dict(word[2:].split("=", 1) for word in arguments if word[:2] == "--" and "=" in word)


def _with_empty(arguments: list[str], names: Sequence[str]) -> list[str]:
    """Return command-line arguments that set ``names`` to {} after the configuration files and before the rest."""
    last = max(
        (index + (word == "--config") for index, word in enumerate(arguments) if word[:8] == "--config"), default=-1
    )
    return [*arguments[: last + 1], *(f"--{name}={{}}" for name in names), *arguments[last + 1 :]]


def _checked_file(parser: jsonargparse.ArgumentParser, name: str, package: str) -> Path:
    """Return the path of a configuration file that stands for itself."""
    path = find_config(name, package)
    _require_plain(parser, str(path), read_source(path, package))
    return path


def _require_plain(parser: jsonargparse.ArgumentParser, name: str, values: Mapping[str, Any]) -> None:
    """Raise ConfigError for values that stand for other files: the parser would follow their names."""
    if "config" in values:
        raise ConfigError(
            f"config: {name} names another configuration, {values['config']!r}; copy its settings instead"
        )
    schema = getattr(parser, "schema", None)
    if schema is not None:
        _require_sections(schema, values, "")


def _require_sections(cls: type, values: Mapping[str, Any], section: str) -> None:
    """Raise ConfigError for the first section of ``values`` that is no mapping, such as the name of a file."""
    hints = get_type_hints(cls)
    for key, value in values.items():
        if dataclasses.is_dataclass(hints.get(key)):
            name = f"{section}{key}"
            if not isinstance(value, Mapping):
                raise ConfigError(f"{name}: expected a section of settings, got {value!r}")
            _require_sections(cast(type, hints[key]), value, f"{name}.")


def find_config(name: str | Path, package: str = PRESET_PACKAGE) -> Path:
    """Return the path of a preset or YAML file; raises ConfigError listing the presets when neither exists."""
    if str(name) in presets(package):
        return Path(str(resources.files(package) / f"{name}.yaml"))
    path = user_path("config", name)
    if path.is_file():
        return path
    raise ConfigError(f"config: no file and no preset called {str(name)!r}; presets: {', '.join(presets(package))}")


def read_source(source: str | Path | Mapping[str, Any] | None, package: str = PRESET_PACKAGE) -> dict[str, Any]:
    """Return a source's values as a nested dictionary of its own; raises ConfigError when it is no mapping."""
    if source is None:
        return {}
    if isinstance(source, Mapping):
        nested: dict[str, Any] = {}
        for key, value in source.items():
            set_dotted(nested, str(key), value)
        return nested
    path = find_config(source, package)
    values = read_yaml(path, ConfigError)
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"config: {path} holds {type(values).__name__}, expected a mapping of sections")
    return values or {}


def check_keys(cls: type, values: Any, section: str = "") -> None:
    """Raise ConfigError for the first key of nested ``values`` that the dataclass ``cls`` does not have."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{section}: expected a section of settings, got {values!r}")
    known = {item.name for item in dataclasses.fields(cls)}
    hints = {name: hint for name, hint in get_type_hints(cls).items() if name in known}
    for key, value in values.items():
        name = f"{section}.{key}" if section else str(key)
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            advice = f"did you mean {close[0]!r}" if close else f"known keys: {', '.join(hints)}"
            raise ConfigError(f"{name}: unknown configuration key; {advice}")
        if dataclasses.is_dataclass(hints[key]):
            check_keys(cast(type, hints[key]), value, name)


def from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
    """Build a dataclass tree from nested values that were type-checked before, then call its ``validate``.

    Paths become absolute: the configuration means the same from every folder.
    """
    config = cast(C, _build(cls, values, ""))
    validate = getattr(config, "validate", None)
    if validate is not None:
        validate()
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as nested plain values that YAML and JSON can hold; tuples become lists."""
    return cast(dict[str, Any], _plain(dataclasses.asdict(config)))


def to_yaml(config: Any) -> str:
    """Return a configuration as YAML that loads back to an equal one."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def _build(cls: type, values: Mapping[str, Any], section: str) -> Any:
    hints = get_type_hints(cls)
    arguments = {}
    for item in dataclasses.fields(cls):
        if item.name not in values:
            continue
        value = values[item.name]
        if dataclasses.is_dataclass(hints[item.name]):
            value = _build(cast(type, hints[item.name]), value, f"{section}{item.name}.")
        elif value is None and type(None) not in get_args(hints[item.name]):
            raise ConfigError(f"{section}{item.name}: expected a value, got null")
        elif isinstance(value, list) and _is_tuple(hints[item.name]):
            value = tuple(value)
        arguments[item.name] = settled(f"{section}{item.name}", bare(value), item.metadata)
    return cls(**arguments)


def _is_tuple(hint: Any) -> bool:
    return getattr(hint, "__origin__", None) is tuple or any(_is_tuple(part) for part in get_args(hint))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
