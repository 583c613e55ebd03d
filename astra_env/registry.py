"""One kind of registry, used for data sets, networks, rewards, objectives, policies and learners."""

import importlib
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from astra_env.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names for one kind of thing, with a helpful error for an unknown name.

    A name of the form ``module:attribute`` is imported, so users plug in their own without registering.

    Args:
        kind: the configuration field that holds such a name.
        group: entry-point group through which installed packages provide further names; imported when asked for.
    """

    def __init__(self, kind: str, group: str | None = None) -> None:
        self.kind = kind
        self.group = group
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that stores its argument under ``name``; raises ValueError when the name is taken."""

        def store(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered already")
            self._entries[name] = entry
            return entry

        return store

    def get(self, name: str) -> T:
        """Return the entry called ``name`` or import ``module:attribute``; raises ConfigError for unknown names."""
        if name in self._entries:
            return self._entries[name]
        if ":" in name:
            return self._load(name)
        provided = self._provided()
        if name in provided:
            return self._load(provided[name].value)
        known = ", ".join(sorted({*self._entries, *provided}))
        hint = f"; install (again) the package that adds it to the entry points {self.group!r}" if self.group else ""
        raise ConfigError(f"{self.kind}: expected one of {known} or 'module:attribute', got {name!r}{hint}")

    def _provided(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=self.group)} if self.group else {}

    def _load(self, name: str) -> Any:
        module_name, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except ImportError as error:
            raise ConfigError(
                f"{self.kind}: cannot import module {module_name!r} of {name!r} ({error}); is it on PYTHONPATH?"
            ) from error
        except AttributeError as error:
            raise ConfigError(
                f"{self.kind}: module {module_name!r} has no {attribute!r}, asked for by {name!r}"
            ) from error

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
