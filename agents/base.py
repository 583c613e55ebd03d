"""The registry of policies, and what they share."""

from typing import Any

from astra_env.registry import Registry

POLICIES: Registry[Any] = Registry("policy")


def batch_size(observation: Any) -> int | None:
    """Return the number of observations in a batch, or None for a single one (a vector or one CHW image)."""
    return len(observation) if observation.ndim in (2, 4) else None
