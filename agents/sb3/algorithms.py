"""The algorithms of Stable-Baselines3 and sb3-contrib: a new one is one more entry here, or a ``module:attribute``."""

import importlib
from dataclasses import dataclass
from typing import Any, Literal

from astra_env.errors import ConfigError
from astra_env.registry import Registry


@dataclass(frozen=True)
class Algorithm:
    """An algorithm and the settings that suit the environments of this package.

    Attributes:
        source: its class, ``module:Class``, imported when it is first asked for.
        chunk: defaults in attack_strategy, whose episodes have tens of steps, each as expensive as a chunk of training.
        view: defaults in instance, where one attack hardly changes the views to come, so that a view is a bandit (gamma
            0, and short rollouts); None for an algorithm that cannot choose an attack per view.
        actions: what attack_strategy's actions are turned into for it.
        minibatches: whether it takes a ``batch_size`` that has to divide the rollout.
        policy: end of the name of its policy class.
    """

    source: str
    chunk: dict[str, Any]
    view: dict[str, Any] | None = None
    actions: Literal["discrete", "box"] | None = None
    minibatches: bool = False
    policy: str = "Policy"

    def load(self) -> Any:
        """Return its class; raises ConfigError when its package is not installed."""
        module, _, name = self.source.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except ImportError as error:
            raise ConfigError(f"algo: {name} needs package {module}; pip install 'astra-env[zoo]'") from error


ALGORITHMS: Registry[Algorithm] = Registry("algo")
_PPO_CHUNK = {"n_steps": 16, "n_epochs": 10, "learning_rate": 1e-3, "ent_coef": 0.01, "gamma": 0.9}
_PPO_VIEW = {"n_steps": 4, "n_epochs": 2, "learning_rate": 1e-3, "ent_coef": 0.01, "gamma": 0.0}
_REPLAY = {"buffer_size": 10_000, "learning_starts": 32, "gamma": 0.9}

for _name, _algorithm in {
    "ppo": Algorithm("stable_baselines3:PPO", _PPO_CHUNK, {**_PPO_VIEW, "gae_lambda": 1.0}, minibatches=True),
    "a2c": Algorithm(
        "stable_baselines3:A2C",
        {"n_steps": 4, "learning_rate": 1e-3, "ent_coef": 0.01, "gamma": 0.9},
        {"n_steps": 1, "learning_rate": 1e-3, "ent_coef": 0.01, "gamma": 0.0, "normalize_advantage": True},
    ),
    "dqn": Algorithm("stable_baselines3:DQN", {**_REPLAY, "train_freq": 1, "learning_rate": 1e-3}, actions="discrete"),
    "sac": Algorithm("stable_baselines3:SAC", _REPLAY, actions="box"),
    "td3": Algorithm("stable_baselines3:TD3", _REPLAY, actions="box"),
    "trpo": Algorithm(
        "sb3_contrib:TRPO",
        {"n_steps": 16, "gamma": 0.9},
        {"n_steps": 4, "gamma": 0.0, "gae_lambda": 1.0},
        minibatches=True,
    ),
    "recurrent_ppo": Algorithm(
        "sb3_contrib:RecurrentPPO", _PPO_CHUNK, _PPO_VIEW, minibatches=True, policy="LstmPolicy"
    ),
}.items():
    ALGORITHMS.register(_name)(_algorithm)
