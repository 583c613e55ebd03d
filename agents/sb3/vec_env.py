"""The environments of this package as Stable-Baselines3's VecEnv."""

from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from agents.sb3.algorithms import ALGORITHMS
from agents.sb3.config import AgentConfig
from astra_env.envs import AttackStrategyEnv, BoxStrategy, DiscreteStrategy, InstanceAttackStrategyVectorEnv
from astra_env.errors import ConfigError


class InstanceVecEnv(VecEnv):
    """Shows InstanceAttackStrategy-v0 to Stable-Baselines3 as the VecEnv that it is.

    All views share one environment, so ``get_attr``, ``set_attr`` and ``env_method`` act on it once and report the
    outcome for every view asked for; of per-view seeds and options the first one counts.

    Args:
        env: the vector environment, in same-step autoreset mode.

    Raises:
        ConfigError: for another autoreset mode, which Stable-Baselines3 does not know.
    """

    def __init__(self, env: InstanceAttackStrategyVectorEnv) -> None:
        if env.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
            raise ConfigError("autoreset_mode: Stable-Baselines3 needs 'same_step'")
        self.env = env
        self._actions = np.zeros((env.num_envs, 3), dtype=np.int64)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> np.ndarray:
        """Start an episode with the seed and options given before; returns uint8 (N, 3, H, W)."""
        observation, info = self.env.reset(seed=self._seeds[0], options=self._options[0] or None)
        self.reset_infos = _per_view(info, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Remember the actions (N, 3)."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take the step; a finished view's info holds ``terminal_observation`` and ``TimeLimit.truncated``."""
        observation, rewards, terminated, truncated, info = self.env.step(self._actions)
        dones = terminated | truncated
        infos = _per_view(info.get("final_info", info), self.num_envs)
        for entry, cut in zip(infos, (truncated & ~terminated).tolist(), strict=True):
            entry["TimeLimit.truncated"] = cut
        if dones.all():
            self.reset_infos = _per_view({"step": info["step"]}, self.num_envs)
            for entry, final in zip(infos, info["final_obs"], strict=True):
                entry["terminal_observation"] = final
        return observation, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Release the environment."""
        self.env.close()

    def get_images(self) -> list[np.ndarray | None]:
        """Return the one figure of the training; it is the same for every view."""
        frames = self.env.render()
        return [None if frames is None else frames[0]]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return the attribute of the shared environment, once per view asked for."""
        return [getattr(self.env, attr_name)] * self._count(indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the shared environment; it applies to every view, whichever are named."""
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the shared environment once; returns its result once per view asked for."""
        return [getattr(self.env, method_name)(*method_args, **method_kwargs)] * self._count(indices)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Views have no wrappers of their own."""
        return [False] * self._count(indices)

    def _count(self, indices: VecEnvIndices) -> int:
        named: Iterable[int] = self._get_indices(indices)
        return len(list(named))


def make_single_env(config: AgentConfig, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Return AttackStrategy-v0 with the action space that ``config.algo`` takes."""
    env: gym.Env[Any, Any] = AttackStrategyEnv(config.experiment, config.overrides, render_mode)
    actions = ALGORITHMS.get(config.algo).actions
    if actions is not None:
        env = DiscreteStrategy(env) if actions == "discrete" else BoxStrategy(env)
    return env


def make_instance_env(config: AgentConfig, **arguments: Any) -> InstanceAttackStrategyVectorEnv:
    """Return InstanceAttackStrategy-v0 for ``config``; ``arguments`` are further ones of the environment."""
    return InstanceAttackStrategyVectorEnv(config.num_envs, config.experiment, config.overrides, **arguments)


def make_vec_env(config: AgentConfig) -> VecEnv:
    """Return the environment of ``config`` as a VecEnv that keeps episode statistics."""
    if config.env == "instance":
        return VecMonitor(InstanceVecEnv(make_instance_env(config)))
    return VecMonitor(DummyVecEnv([lambda: make_single_env(config)] * (config.num_envs or 1)))


def _per_view(info: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Turn a vector environment's information into one dictionary per view."""
    names = [name for name in info if not name.startswith(("_", "final_"))]
    if not names:
        return [{} for _ in range(count)]
    columns = [np.asarray(info[name]).tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
