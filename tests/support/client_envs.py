"""What every client is given: episodes of three steps, on the tiny preset."""

from typing import Any

import gymnasium as gym
import numpy as np

import astra_env  # noqa: F401 - registers the environments

SINGLE = "astra_env/AttackStrategy-v0"
VECTOR = "astra_env/InstanceAttackStrategy-v0"
SHORT = {"learner.total_steps": 3, "env.chunk_steps": 1}
LENGTH = 3
ACTION = np.zeros(3, dtype=np.int64)


def single(**arguments: Any) -> gym.Env[Any, Any]:
    """Return AttackStrategy-v0 as ``gym.make`` gives it."""
    return gym.make(SINGLE, config="tiny", overrides=SHORT, **arguments)


def vector(mode: str = "same_step", num_envs: int = 4, **arguments: Any) -> Any:
    """Return InstanceAttackStrategy-v0 as ``gym.make_vec`` gives it."""
    return gym.make_vec(VECTOR, num_envs=num_envs, config="tiny", overrides=SHORT, autoreset_mode=mode, **arguments)


def rewards_of(seed: int, episodes: int = 2) -> tuple[list[list[float]], list[np.ndarray]]:
    """Return the rewards of the first episodes of a seeded single environment under ACTION, and their last sights."""
    env = single()
    rewards, last = [], []
    env.reset(seed=seed)
    for _ in range(episodes):
        rewards.append([])
        over = False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(ACTION)
            rewards[-1].append(float(reward))
            over = terminated or truncated
        last.append(observation)
        env.reset()
    return rewards, last
