"""From a method's name and arguments to the method."""

import inspect
from collections.abc import Mapping
from typing import Any

from astra_env.errors import ConfigError
from rpat.methods.base import Method
from rpat.methods.registry import METHODS


def method_class(name: str) -> type[Method]:
    """Return the class called ``name``; raises ConfigError for an unknown name or something that is no method."""
    cls = METHODS.get(name)
    if not (inspect.isclass(cls) and issubclass(cls, Method)):
        raise ConfigError(f"method: expected a subclass of rpat.methods.Method, got {name!r}; derive it from Method")
    return cls


def make_method(name: str, arguments: Mapping[str, Any] | None = None) -> Method:
    """Return the method called ``name``; raises ConfigError naming an argument that it does not have."""
    cls = method_class(name)
    arguments = dict(arguments or {})
    known = list(inspect.signature(cls).parameters)
    for key in arguments:
        if key not in known:
            advice = f"it takes {', '.join(known)}" if known else "it takes none, remove it"
            raise ConfigError(f"method_args.{key}: {name} has no such argument; {advice}")
    return cls(**arguments)
