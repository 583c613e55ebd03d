"""The state of a contrastive learner: whether one fits, asked before anything is changed, and taking it over."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from astra_env.errors import CheckpointError
from astra_env.models import load_official
from astra_env.state_checks import (
    require_count,
    require_generator_state,
    require_mapping,
    require_optimizer_state,
    require_scale,
    require_tensor,
    require_tensors,
)

if TYPE_CHECKING:
    from astra_env.learner import ContrastiveLearner


def check_state(learner: "ContrastiveLearner", state: Mapping[str, Any]) -> None:
    """Raise CheckpointError for what loading alone would not notice."""
    for name in ("target", "optimizer", "sampler", "view_generator", "attack_generator", "step"):
        if name not in state:
            raise CheckpointError(f"checkpoint: does not fit this learner: {name!r} is missing")
    require_tensors("target", state["target"], learner.target.state_dict())
    require_optimizer_state("optimizer", state["optimizer"], learner.optimizer)
    require_generator_state("view_generator", state["view_generator"], learner.view_generator)
    require_generator_state("attack_generator", state["attack_generator"], learner.attack_generator)
    require_count("step", state["step"])
    require_scale("learning_rate_scale", state.get("learning_rate_scale"))
    require_tensor("attack_steps", state.get("attack_steps", learner.attack_steps), learner.attack_steps)
    learner.objective.check_state(require_mapping("objective", state.get("objective", {})))


def take_state(learner: "ContrastiveLearner", state: Mapping[str, Any]) -> None:
    """Put a state that :func:`check_state` accepted into ``learner``."""
    load_official(learner.target, state["target"])
    learner.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
    learner.sampler.load_state_dict(state["sampler"])
    learner.view_generator.set_state(state["view_generator"].cpu())
    learner.attack_generator.set_state(state["attack_generator"].cpu())
    learner.step_count = state["step"]
    learner.learning_rate_scale = float(state["learning_rate_scale"])
    learner.attack_steps = torch.as_tensor(state.get("attack_steps", 0), device=learner.device).clone()
    learner.objective.load_state_dict(state.get("objective", {}))
