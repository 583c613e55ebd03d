"""Letting a policy live in an environment, single or vector, and learn from what comes of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from torch import Tensor

from astra_env.learner.protocol import Policy, for_policy

Listener = Callable[[int, dict[str, float]], None]


@dataclass
class EpisodeResult:
    """What came of one episode.

    Attributes:
        rewards: mean over the views of each step's reward.
        last: the scalars of the last step.
        diverged: whether training diverged.
    """

    rewards: list[float] = field(default_factory=list)
    last: dict[str, float] = field(default_factory=dict)
    diverged: bool = False

    @property
    def mean_reward(self) -> float:
        """The mean reward per step."""
        return float(np.mean(self.rewards))


def play(
    env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any],
    policy: Policy,
    *,
    seed: int | None = None,
    learn: bool = False,
    deterministic: bool = False,
    max_steps: int | None = None,
    listener: Listener | None = None,
) -> EpisodeResult:
    """Run ``policy`` through one episode, that is one training.

    The policy takes part as it does in a training script: the same protocol, the same actions, the same weights.

    Args:
        env: either environment of this package, wrapped or not.
        policy: who chooses the attacks; a trained Stable-Baselines3 model is one.
        seed: of the training; default by the environment's rules for a bare reset.
        learn: hand every step's outcome to the policy's ``learn_from``, if it has one.
        deterministic: ask the policy for its most likely actions.
        max_steps: stop after so many steps; default at the end of the episode.
        listener: called after each step with its number (from 1) and scalars.
    """
    observation, _ = env.reset(seed=seed)
    result, state, start = EpisodeResult(), None, True
    while max_steps is None or len(result.rewards) < max_steps:
        starts = np.full(env.num_envs, start) if isinstance(env, VectorEnv) else np.array([start])
        if learn:
            _rehearse(env, policy, observation)
        actions, state = policy.predict(for_policy(policy, observation), state, starts, deterministic)
        outcome: tuple[Any, Any, Any, Any, dict[str, Any]] = env.step(actions)
        following, reward, terminated, truncated, info = outcome
        if learn and hasattr(policy, "learn_from"):
            shared = isinstance(env, VectorEnv) and env.unwrapped.shared_reward  # type: ignore[attr-defined]
            earned = reward[0] if shared else reward
            policy.learn_from(for_policy(policy, observation), actions, for_policy(policy, earned))
        observation, start = following, False
        result.rewards.append(float(np.mean(_on_host(reward))))
        over = bool(np.all(_on_host(terminated | truncated)))
        last = info.get("final_info", info)
        result.last = _scalars(last)
        result.diverged = bool(np.any(_on_host(last.get("diverged", False))))
        if listener is not None:
            listener(len(result.rewards), result.last)
        if over:
            break
    return result


def _rehearse(env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any], policy: Policy, observation: Any) -> None:
    """Try the attacks that a policy wants to learn from before the step, if it is one that does, and teach it."""
    propose = getattr(policy, "rehearse", None)
    actions = None if propose is None else propose(for_policy(policy, observation))
    if actions is not None:
        trained: Any = env.unwrapped
        learner: Any = policy
        reward = trained.try_attack(actions)
        learner.learn_from(for_policy(policy, observation), actions, for_policy(policy, reward))


def _scalars(info: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of an information dictionary; the mean over the views of a vector environment."""
    told = {name: value for name, value in info.items() if not name.startswith("_") and not isinstance(value, dict)}
    numbers = {name: np.asarray(_on_host(value)) for name, value in told.items()}
    return {name: float(value.mean()) for name, value in numbers.items() if value.dtype.kind in "fiu"}


def _on_host(value: Any) -> Any:
    return value.cpu().numpy() if isinstance(value, Tensor) else value
