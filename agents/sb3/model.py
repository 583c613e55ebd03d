"""Agents of Stable-Baselines3 and sb3-contrib with settings that suit the environments of this package."""

import math
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents.sb3.algorithms import ALGORITHMS
from agents.sb3.config import AgentConfig
from astra_env.errors import ConfigError, InputError
from astra_env.models.resnet import BasicBlock, ResNetTrunk
from astra_env.strategy import PARAMETERS

BATCH_SIZE = 256


class ResNetExtractor(BaseFeaturesExtractor):
    """A ResNet with GroupNorm on views of any size; Stable-Baselines3's NatureCNN fails below 36 pixels.

    GroupNorm, because rollouts and updates show the network batches of different make-up.

    Args:
        observation_space: Box (3, H, W).
        width: channels of the first stage.
        blocks: residual blocks of the stages.
    """

    def __init__(self, observation_space: gym.spaces.Box, width: int = 16, blocks: tuple[int, ...] = (2, 2, 2, 2)):
        super().__init__(observation_space, features_dim=width * 2 ** (len(blocks) - 1))
        self.trunk = ResNetTrunk(BasicBlock, width, tuple(blocks), norm="group")

    def forward(self, observations: Tensor) -> Tensor:
        """Views (N, 3, H, W) in [0, 1] -> features (N, features_dim)."""
        return self.trunk.embed(observations.contiguous())


class RolloutCallback(BaseCallback):
    """Calls ``between`` whenever no rollout is under way, the moment at which model and environment fit together.

    Args:
        between: called with the mean reward and the information of the rollout before, empty at first; returns
            whether to go on.
    """

    def __init__(self, between: Callable[[dict[str, float]], bool]) -> None:
        super().__init__()
        self.between = between
        self.go_on = True
        self._rewards: list[float] = []
        self._scalars: list[dict[str, float]] = []

    def _on_rollout_start(self) -> None:
        self.go_on = self.between(self._summary())
        self._rewards, self._scalars = [], []

    def _on_step(self) -> bool:
        self._rewards.append(float(np.mean(self.locals["rewards"])))
        info = self.locals["infos"][0]
        self._scalars.append({n: v for n, v in info.items() if isinstance(v, float) and n not in PARAMETERS})
        return self.go_on

    def _summary(self) -> dict[str, float]:
        if not self._rewards:
            return {}
        learning = {name: value for name, value in self.logger.name_to_value.items() if name.startswith("train/")}
        names = set.intersection(*(set(entry) for entry in self._scalars))
        means = {f"env/{name}": float(np.mean([entry[name] for entry in self._scalars])) for name in sorted(names)}
        return {"reward": float(np.mean(self._rewards)), **means, **{k: float(v) for k, v in learning.items()}}


def make_model(algo: str, env: VecEnv, config: AgentConfig | None = None) -> BaseAlgorithm:
    """Build an agent with defaults that suit ``env``.

    Args:
        algo: a name of :data:`agents.sb3.algorithms.ALGORITHMS`.
        env: what :func:`make_vec_env` returns, or any VecEnv with the same spaces.
        config: seed, device, feature extractor and hyperparameters.

    Raises:
        ConfigError: for an unknown algorithm, one that does not fit the action space, or unknown hyperparameters.
    """
    config = config if config is not None else AgentConfig(algo=algo)
    images = len(env.observation_space.shape or ()) == 3
    algorithm = ALGORITHMS.get(algo)
    settings = dict((algorithm.view or {}) if images else algorithm.chunk)
    if images:
        extractor = {"width": config.width, "blocks": tuple(config.blocks)}
        settings["policy_kwargs"] = {
            "features_extractor_class": ResNetExtractor,
            "features_extractor_kwargs": extractor,
            "net_arch": [],
        }
    settings |= {
        **config.hyperparameters,
        "policy_kwargs": {**settings.get("policy_kwargs", {}), **config.hyperparameters.get("policy_kwargs", {})},
    }
    if algorithm.minibatches and "batch_size" not in settings:
        settings["batch_size"] = _divisor(settings["n_steps"] * env.num_envs, BATCH_SIZE)
    policy = ("Cnn" if images else "Mlp") + algorithm.policy
    try:
        return algorithm.load()(policy, env, seed=config.seed, device=config.device, **settings)
    except TypeError as error:
        raise ConfigError(f"hyperparameters: {error} (algo {algo!r})") from error
    except AssertionError as error:
        raise ConfigError(f"algo: {algo} does not fit the environment: {error}") from error


def trained(path: str, algo: str = "ppo", device: torch.device | str = "cpu", trusted: bool = False) -> BaseAlgorithm:
    """Load a saved agent as a policy: ``agents.make("agents.sb3:trained", path="run/model.zip", trusted=True)``.

    Stable-Baselines3's files hold pickled Python objects, which run code when loaded: say ``trusted`` of your own files
    only.

    Raises:
        InputError: when it is not trusted or cannot be loaded.
    """
    if trusted is not True:
        raise InputError(
            f"trusted: {path} holds pickled objects, which could run code when loaded; if the file is your own, add "
            "--policy_args '{\"trusted\": true, ...}'"
        )
    try:
        return ALGORITHMS.get(algo).load().load(path, device=device)
    except (OSError, ValueError) as error:
        raise InputError(f"path: cannot load a {algo} agent from {path!r} ({error})") from error


def _divisor(number: int, limit: int) -> int:
    """Return the largest divisor of ``number`` that is at most ``limit``: whole minibatches of a rollout."""
    best = 1
    for candidate in range(1, math.isqrt(number) + 1):
        if number % candidate == 0:
            best = max([best, *(size for size in (candidate, number // candidate) if size <= limit)])
    return best
