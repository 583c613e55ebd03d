"""Supervised adversarial training with robust perception (RPAT, ICCV 2025)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rpat.config import RPATConfig
    from rpat.methods import METHODS, Method
    from rpat.trainer import Trainer
    from rpat.weights import load_network

__all__ = ["METHODS", "Method", "RPATConfig", "Trainer", "load_network"]

_HOMES = {
    "METHODS": "rpat.methods",
    "Method": "rpat.methods",
    "RPATConfig": "rpat.config",
    "Trainer": "rpat.trainer",
    "load_network": "rpat.weights",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: importing the package itself stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
