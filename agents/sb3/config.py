"""The configuration of training a Stable-Baselines3 agent in an environment of this package."""

from dataclasses import dataclass, field
from typing import Any

from astra_env.errors import ConfigError

CONFIG_PACKAGE = "agents.presets"
ENVIRONMENTS = ("attack_strategy", "instance")
ALGORITHMS = ("ppo", "a2c", "dqn", "sac", "td3", "trpo", "recurrent_ppo")
ACTION_WRAPPERS = {"dqn": "discrete", "sac": "box", "td3": "box"}


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

    env: str = "instance"
    """instance (every view its own attack) or attack_strategy (one attack per chunk)."""
    experiment: str = "quickstart"
    """Preset or YAML file of the training that the agent lives in."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Changes to the experiment by dotted key, such as {learner.reward: cost_aware}."""
    num_envs: int | None = None
    """instance: views per minibatch, default the experiment's; attack_strategy: trainings side by side, default 1."""
    algo: str = "ppo"
    """ppo, a2c, trpo or recurrent_ppo; for attack_strategy also dqn, sac and td3."""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    """Arguments of the algorithm; they win over this package's defaults."""
    width: int = 16
    """Channels of the first stage of the feature extractor (instance)."""
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    """Residual blocks of its stages."""
    total_timesteps: int = 100_000
    """Transitions to learn from, as Stable-Baselines3 counts: steps times num_envs."""
    seed: int = 0
    """Seed of the agent and of the trainings it lives in."""
    device: str = "auto"
    """Device of the agent: cpu, cuda or auto; the experiment has its own."""
    checkpoint_every: int = 20_000
    """Transitions between checkpoints."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def validate(self) -> None:
        """Raise ConfigError naming the first field whose value cannot be used."""
        if self.env not in ENVIRONMENTS:
            raise ConfigError(f"env: expected one of {', '.join(ENVIRONMENTS)}, got {self.env!r}")
        if self.algo not in ALGORITHMS:
            raise ConfigError(f"algo: expected one of {', '.join(ALGORITHMS)}, got {self.algo!r}")
        if self.env == "instance" and self.algo in ACTION_WRAPPERS:
            raise ConfigError(
                f"algo: {self.algo} cannot choose an attack per view; use --env attack_strategy, or ppo, a2c, trpo or "
                "recurrent_ppo"
            )
        for name in ("total_timesteps", "checkpoint_every", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected an integer >= 1, got {getattr(self, name)}")
