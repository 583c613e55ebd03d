"""Gymnasium environments in which the attack of an adversarial training run is itself learned."""

import importlib
from typing import TYPE_CHECKING, Any

from astra_env.registration import register_envs

if TYPE_CHECKING:
    from astra_env.strategy import Attack, AttackStrategy, StrategySpace

__version__ = "0.1.0"
__all__ = ["Attack", "AttackStrategy", "StrategySpace", "__version__", "register_envs"]

register_envs()


def __getattr__(name: str) -> Any:
    """Import the types of attacks, and PyTorch with them, when they are first asked for."""
    if name in ("Attack", "AttackStrategy", "StrategySpace"):
        return getattr(importlib.import_module("astra_env.strategy"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
