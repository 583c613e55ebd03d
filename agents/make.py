"""Making a policy by name, for the run it will act in."""

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch

from agents.base import POLICIES
from agents.transfer import is_checkpoint, transferred
from astra_env.errors import ConfigError
from astra_env.learner.protocol import Policy
from astra_env.strategy import StrategySpace


@dataclass(frozen=True)
class Context:
    """What a policy may want to know of the run it acts in; each field is passed to constructors that name it.

    Attributes:
        space: the grids to choose from.
        device: where observations live.
        seed: of the policy's own generators.
        total_steps: length of the training, for schedules.
        warmup_steps: length of its warm-up.
    """

    space: StrategySpace
    device: torch.device | str = "cpu"
    seed: int = 0
    total_steps: int = 1000
    warmup_steps: int = 0


def make(name: str, *, context: Context | None = None, **kwargs: Any) -> Policy:
    """Build a policy.

    Args:
        name: "fixed", "random", "scheduled", "reinforce", ``module:Class`` of your own, or a run directory or
            checkpoint (``.pt``) whose trained strategy network is to act here.
        context: the run it will act in; default the paper's grids on the CPU. Its fields reach constructors that have
            parameters of those names (``space``, ``device``, ``seed``, ``total_steps``, ``warmup_steps``).
        kwargs: arguments of the policy; they win over the context.

    Raises:
        CheckpointError: for a checkpoint that holds no strategy network.
        ConfigError: for an unknown name, arguments it does not take, or a class without ``predict``.
    """
    factory = _factory(name)
    context = context if context is not None else Context(StrategySpace())
    parameters = inspect.signature(factory).parameters
    known = {field: value for field, value in vars(context).items() if field in parameters}
    try:
        policy = factory(**{**known, **kwargs})
    except TypeError as error:
        raise ConfigError(f"policy_args: {error} (policy {name!r})") from error
    if not callable(getattr(policy, "predict", None)):
        raise ConfigError(f"policy: {name!r} has no method predict(observation, ...), so it cannot act")
    return policy


def _factory(name: str) -> Any:
    return functools.partial(transferred, name) if name not in POLICIES and is_checkpoint(name) else POLICIES.get(name)
