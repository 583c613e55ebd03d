"""A strategy network trained in one run acts in another: ``policy: runs/other`` or a checkpoint's path."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.reinforce import Reinforce
from astra_env.config.paths import user_path
from astra_env.errors import CheckpointError, ConfigError
from astra_env.learner.protocol import Policy
from astra_env.storage.checkpoint import load_checkpoint
from astra_env.storage.state import require_mapping, require_state
from astra_env.strategy import PARAMETERS, StrategySpace


class Transferred:
    """A trained strategy network that acts and no longer learns.

    Args:
        inner: the policy that holds the network.
    """

    accepts_tensors = True
    samples_from_grid = True

    def __init__(self, inner: Reinforce) -> None:
        self.inner = inner

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Choose attacks for uint8 views (N, 3, H, W) or one view; sampled unless ``deterministic``."""
        return self.inner.predict(observation, state, episode_start, deterministic)

    def state_dict(self) -> dict[str, Any]:
        """Return the network and the generator of its choices."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state`` was taken."""
        self.inner.load_state_dict(state)


def is_checkpoint(name: str) -> bool:
    """Whether a policy's name means a run directory or a checkpoint."""
    return name.endswith(".pt") or user_path("policy", name).is_dir()


def transferred(
    path: str,
    *,
    space: StrategySpace,
    device: torch.device | str = "cpu",
    seed: int = 0,
    total_steps: int = 1000,
    warmup_steps: int = 0,
    learn: bool = False,
    **settings: Any,
) -> Policy:
    """Return the policy whose strategy network a run's checkpoint holds.

    Args:
        path: a run directory, which stands for its ``checkpoints/last.pt``, or a checkpoint.
        space: grids of the run it will act in.
        device: where that run is.
        seed: of that run.
        total_steps: of that run.
        warmup_steps: of that run.
        learn: keep learning in it, with a fresh optimiser; by default the network is frozen.
        settings: of that learning, as for "reinforce": ``preset``, ``learning_rate`` and so on.

    Raises:
        CheckpointError: for a missing or unsafe file, or one without a strategy network.
        ConfigError: when its grids are not this run's, or for settings that do not exist.
    """
    if not isinstance(learn, bool):
        raise ConfigError(f"policy_args.learn: expected true or false, got {learn!r}")
    if settings and not learn:
        raise ConfigError(f"policy_args.{next(iter(settings))}: a transferred policy takes it only with learn: true")
    for name in ("width", "blocks", "norm"):
        if name in settings:
            raise ConfigError(f"policy_args.{name}: is read off the checkpoint {path}; leave it out")
    file = user_path("policy", path)
    file = file / "checkpoints" / "last.pt" if file.is_dir() else file
    checkpoint = load_checkpoint(file)
    weights = require_mapping("policy", checkpoint.get("policy", {})).get("strategy")
    if not isinstance(weights, Mapping):
        raise CheckpointError(
            f"{file}: holds no strategy network (its attacks were chosen by policy {checkpoint.get('policy_name')!r}); "
            "give a run of policy reinforce"
        )
    _require_grids(file, checkpoint, space)
    settings = {**settings, **_architecture(file, weights)}
    policy = Reinforce(
        space=space, device=device, seed=seed, total_steps=total_steps, warmup_steps=warmup_steps, **settings
    )
    require_state(weights, policy.network, f"{file}: policy.strategy")
    policy.network.load_state_dict(weights)
    return policy if learn else Transferred(policy)


def _require_grids(file: Path, checkpoint: Mapping[str, Any], space: StrategySpace) -> None:
    config = checkpoint.get("config")
    grids = config.get("strategy") if isinstance(config, Mapping) else None
    if not isinstance(grids, Mapping) or not set(grids) >= set(PARAMETERS):
        raise CheckpointError(f"{file}: does not say which grids its policy chooses from")
    learner = config.get("learner") if isinstance(config, Mapping) else None
    norm = learner.get("norm", "linf") if isinstance(learner, Mapping) else "linf"
    own = StrategySpace(**grids, norm=norm)
    if own.step_size_unit != space.step_size_unit:
        raise ConfigError(
            f"policy: {file} chooses strategy.step_size in {own.step_size_unit} units, this run in "
            f"{space.step_size_unit}; copy the strategy section of its config.yaml"
        )
    for name in PARAMETERS:
        theirs, ours = getattr(own, name), getattr(space, name)
        if theirs != ours:
            raise ConfigError(
                f"policy: {file} chooses strategy.{name} among {list(grids[name])}, this run has another grid of "
                f"{len(ours)} values; copy the strategy section of its config.yaml"
            )


def _architecture(file: Path, weights: Mapping[str, Any]) -> dict[str, Any]:
    first = weights.get("conv1.weight")
    found: dict[int, int] = {}
    for name in weights:
        if match := re.match(r"layer(\d+)\.(\d+)\.", str(name)):
            found[int(match[1])] = max(found.get(int(match[1]), 0), int(match[2]) + 1)
    if not isinstance(first, Tensor) or first.dim() != 4 or not found:
        raise CheckpointError(f"{file}: its policy is not the strategy network of reinforce")
    norm = "batch" if "bn1.running_mean" in weights else "group"
    return {"width": len(first), "blocks": tuple(found[stage] for stage in sorted(found)), "norm": norm}
