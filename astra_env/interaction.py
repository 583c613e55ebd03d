"""The one loop body that lets a policy act in a learner and learn from what came of it."""

from typing import Any

import torch
from torch import Tensor

from astra_env.distributed import world_of
from astra_env.protocols import Learner, Policy
from astra_env.report import StepReport


def interact(learner: Learner, policy: Policy) -> StepReport:
    """Let ``policy`` choose the attacks of one training step and learn from the reward, if it learns.

    Raises:
        InputError: when the policy answers with anything but grid indices for every view.
    """
    observation = learner.observation()
    rehearsed = rehearse(learner, policy, observation)
    actions, _ = policy.predict(for_policy(policy, observation))
    actions = world_of(learner).same(actions)
    strategy = learner.space.decode(actions, device=observation.device, check=not trusted(policy))
    report = learner.step(strategy)
    report.policy_terms = {**rehearsed, **teach(policy, observation, actions, report.reward)}
    return report


def rehearse(learner: Learner, policy: Policy, observation: Tensor) -> dict[str, Any]:
    """Try the attacks that a policy wants to learn from before the step, and teach it; returns what it reports."""
    propose = getattr(policy, "rehearse", None)
    actions = None if propose is None else propose(for_policy(policy, observation))
    if actions is None:
        return {}
    actions = world_of(learner).same(actions)
    strategy = learner.space.decode(actions, device=observation.device, check=not trusted(policy))
    return teach(policy, observation, actions, learner.try_attack(strategy))


def teach(policy: Policy, observation: Tensor, actions: Any, reward: Any) -> dict[str, Any]:
    """Hand one step's outcome to a policy that can learn; returns what it reports."""
    learn_from = getattr(policy, "learn_from", None)
    if learn_from is None:
        return {}
    return learn_from(for_policy(policy, observation), actions, for_policy(policy, reward)) or {}


def trusted(policy: Policy) -> bool:
    """Whether the policy's actions are indices of the learner's grids by construction."""
    return bool(getattr(policy, "samples_from_grid", False))


def for_policy(policy: Policy, value: Any) -> Any:
    """Give tensors to policies that accept them, NumPy arrays to the others."""
    if isinstance(value, torch.Tensor) and not getattr(policy, "accepts_tensors", False):
        return value.detach().cpu().numpy()
    return value
