"""The configuration of training a Stable-Baselines3 agent in an environment of this package."""

from dataclasses import dataclass, field
from typing import Any, Literal

from agents.sb3.algorithms import ALGORITHMS
from astra_env.config.types import PositiveInt
from astra_env.errors import ConfigError

CONFIG_PACKAGE = "agents.presets"


@dataclass
class EvaluationConfig:
    """Trained agent and baselines, each through whole trainings from the same seeds."""

    seeds: list[int] = field(default_factory=lambda: [1000, 1001, 1002])
    """Seeds of the trainings; empty to skip the evaluation."""
    baselines: list[str] = field(default_factory=lambda: ["fixed", "random"])
    """Policies to compare with, by name."""
    fixed_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the fixed policy: epsilon, steps, step_size on the grids."""
    deterministic: bool = False
    """Let the agent take its most likely action instead of sampling."""


@dataclass
class AgentConfig:
    """Everything the training of an agent depends on."""

    env: Literal["instance", "attack_strategy"] = "instance"
    """instance (every view its own attack) or attack_strategy (one attack per chunk)."""
    experiment: str = "quickstart"
    """Preset or YAML file of the training that the agent lives in."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Changes to the experiment by dotted key, such as {learner.reward: cost_aware}."""
    num_envs: int | None = None
    """instance: views per minibatch, default the experiment's; attack_strategy: trainings side by side, default 1."""
    algo: str = "ppo"
    """ppo, a2c, trpo or recurrent_ppo; for attack_strategy also dqn, sac and td3; or module:attribute, an Algorithm of
    your own."""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    """Arguments of the algorithm; they win over this package's defaults."""
    width: PositiveInt = 16
    """Channels of the first stage of the feature extractor (instance)."""
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    """Residual blocks of its stages."""
    total_timesteps: PositiveInt = 100_000
    """Transitions to learn from, as Stable-Baselines3 counts: steps times num_envs."""
    seed: int = 0
    """Seed of the agent and of the trainings it lives in."""
    device: str = "auto"
    """Device of the agent: cpu, cuda or auto; the experiment has its own."""
    checkpoint_every: PositiveInt = 20_000
    """Transitions between checkpoints."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def validate(self) -> None:
        """Raise ConfigError naming the first field whose value cannot be used."""
        algorithm = ALGORITHMS.get(self.algo)
        if self.env == "instance" and algorithm.view is None:
            fit = ", ".join(name for name in ALGORITHMS if ALGORITHMS.get(name).view is not None)
            raise ConfigError(
                f"algo: {self.algo} cannot choose an attack per view; use --env attack_strategy, or one of {fit}"
            )
