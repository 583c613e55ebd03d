"""Gymnasium environments in which the attack of an adversarial training run is itself learned."""

import importlib
from typing import TYPE_CHECKING, Any

from astra_env.registration import register_envs

if TYPE_CHECKING:
    from astra_env.envs import fork
    from astra_env.strategy import Attack, AttackStrategy, StrategySpace

__version__ = "0.1.0"
__all__ = ["Attack", "AttackStrategy", "StrategySpace", "__version__", "fork", "register_envs"]

_HOMES = {"Attack": "strategy", "AttackStrategy": "strategy", "StrategySpace": "strategy", "fork": "envs"}
_ROOMS = (
    "attacks", "augment", "commands", "compute", "config", "data", "distributed", "envs", "errors", "evaluation",
    "export", "learner", "losses", "models", "modes", "objectives", "optim", "plotting", "randomness", "registry",
    "rewards", "storage", "strategy", "training",
)  # fmt: skip

register_envs()


def __getattr__(name: str) -> Any:
    """Import a room of the package or a public name, and PyTorch with it, when it is first asked for."""
    if name in _ROOMS:
        return importlib.import_module(f"astra_env.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"astra_env.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
