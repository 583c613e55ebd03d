"""The state of a contrastive learner: whether one fits, asked before anything is changed, and taking it over."""

import copy
from collections.abc import Mapping
from typing import Any

from astra_env.errors import CheckpointError
from astra_env.learner.spending import require_spending
from astra_env.models import load_official
from astra_env.storage.state import (
    require_count,
    require_generator_state,
    require_mapping,
    require_optimizer_state,
    require_scale,
    require_tensor,
    require_tensors,
)

ContrastiveLearner = Any
"""The learner; its class calls this module, which therefore does not import it."""

PARTS = (
    "target", "optimizer", "step", "learning_rate_scale", "sampler", "view_generator", "attack_generator",
    "attack_steps", "objective",
)  # fmt: skip
"""What a state must hold."""


def check_state(learner: ContrastiveLearner, state: Mapping[str, Any]) -> None:
    """Raise CheckpointError for what loading alone would not notice."""
    for name in PARTS:
        if name not in state:
            raise CheckpointError(f"checkpoint: does not fit this learner: {name!r} is missing")
    require_tensors("target", state["target"], learner.target.state_dict())
    require_optimizer_state("optimizer", state["optimizer"], learner.optimizer)
    require_generator_state("view_generator", state["view_generator"], learner.minibatches.generator)
    require_generator_state("attack_generator", state["attack_generator"], learner.adversary.generator)
    require_count("step", state["step"])
    require_scale("learning_rate_scale", state["learning_rate_scale"])
    require_tensor("attack_steps", state["attack_steps"], learner.attack_steps)
    require_spending(state.get("compute", {}))
    require_mapping("outcome", state.get("outcome", {}))
    learner.objective.check_state(require_mapping("objective", state["objective"]))


def take_state(learner: ContrastiveLearner, state: Mapping[str, Any]) -> None:
    """Put a state that :func:`check_state` accepted into ``learner``."""
    load_official(learner.target, state["target"])
    learner.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
    learner.minibatches.sampler.load_state_dict(state["sampler"])
    learner.minibatches.generator.set_state(state["view_generator"].cpu())
    learner.adversary.generator.set_state(state["attack_generator"].cpu())
    learner.step_count = state["step"]
    learner.learning_rate_scale = float(state["learning_rate_scale"])
    learner.adversary.steps = state["attack_steps"].to(learner.device, copy=True)
    learner.objective.load_state_dict(state["objective"])
    learner.meter.load_state_dict(state.get("compute", {}))
    if learner.outcome is not None:
        learner.outcome.load_state_dict(state.get("outcome", {}))
