"""What the rooms expect of each other: policies that choose attacks and learners that train under them."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from astra_env.checkpoint import load_checkpoint
from astra_env.config import ExperimentConfig
from astra_env.data import ImageDataset
from astra_env.distributed import ALONE, World
from astra_env.errors import ConfigError
from astra_env.models import load_official
from astra_env.report import StepReport
from astra_env.strategy import AttackStrategy, StrategySpace


@runtime_checkable
class Policy(Protocol):
    """Chooses attacks; the signature is Stable-Baselines3's, so a trained SB3 model is a policy as it stands.

    A policy that sets ``accepts_tensors = True`` is given uint8 tensors on the learner's device, others NumPy arrays.
    Optional methods: ``learn_from(observation, actions, reward) -> dict`` to learn from each step;
    ``rehearse(observation) -> actions or None`` to have attacks tried before the step, whose reward ``learn_from`` is
    given first; ``state_dict()`` / ``load_state_dict(state)`` to be saved with a run.
    """

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Return (actions, state): integer grid indices (N, 3) for a batch of N observations, (3,) for a single one."""


class Learner(Protocol):
    """A training run that is attacked with chosen strategies, one minibatch a step.

    ``learner.kind`` names the class; it is called with the configuration and, optionally, the training images, and
    everything that lets policies act -- environments, training scripts, Stable-Baselines3 -- runs on it unchanged.
    Derive from this class and write what is abstract here; the rest has defaults that suit a classifier.

    Attributes:
        config: the run's configuration; the learner's own settings are in ``config.learner.kind_args``.
        space: the grids that attacks are chosen from.
        device: where the network lives.
        target: the network under training.
        total_steps: length of the training budget in steps.
        step_count: steps of the budget used up; set to 0, the same network gets another budget.
        warmup_steps: steps until the learning rate is at its height, for policies with such a schedule.
        learning_rate_scale: factor on the learning rate, lowered when a run that diverged was rolled back.
        norm: of the ball that attacks stay in, "linf" or "l2".
        world: the ranks over which every batch is spread.
        attack_steps: gradient steps spent on attacks so far, over all views; a scalar that stays on the device.
    """

    split: ClassVar[str] = "train"
    """The split of the data set it trains on: "train" (labelled), or "pretrain", which may have more images."""
    classifies: ClassVar[bool] = True
    """Whether the network gives logits of the data set's classes; otherwise it is an encoder, and is probed."""
    spreads: ClassVar[bool] = False
    """Whether it can be spread over several processes; it is then given their ``World`` as a third argument."""

    config: ExperimentConfig
    space: StrategySpace
    device: torch.device
    target: nn.Module
    total_steps: int
    step_count: int
    warmup_steps: int = 0
    learning_rate_scale: float = 1.0
    norm: str = "linf"
    world: World = ALONE
    attack_steps: Tensor = torch.zeros((), dtype=torch.int64)

    @classmethod
    def views_per_image(cls, config: ExperimentConfig) -> int:
        """How many views of each image one step trains on."""
        return 1

    @classmethod
    def view_size(cls, config: ExperimentConfig, dataset: ImageDataset) -> int:
        """Side of the views in pixels."""
        return dataset.images.shape[-1]

    @property
    def views_per_step(self) -> int:
        """How many views one step attacks."""
        return self.views_per_image(self.config) * self.config.learner.batch_size

    @property
    def finished(self) -> bool:
        """Whether the training budget is used up."""
        return self.step_count >= self.total_steps

    @property
    @abstractmethod
    def learning_rate(self) -> float:
        """The learning rate of the next step."""

    @property
    def loss_scales(self) -> Mapping[str, float]:
        """What each loss is for outputs that carry no information: the unit in which the observation shows it.

        Keys: ``clean_loss``, ``adv_loss``, ``mixed_loss``; default 1.
        """
        return {}

    @property
    def branch(self) -> str:
        """The BatchNorm branch to probe an encoder with."""
        return "adv"

    @property
    def final_network(self) -> nn.Module:
        """The network to use when the training is over: the target, unless the learner keeps a better one."""
        return self.target

    @abstractmethod
    def observation(self) -> Tensor:
        """Return the views of the next step, uint8 (N, 3, H, W); the same until :meth:`step`."""

    @property
    def left_to_prepare(self) -> int:
        """How many calls of :meth:`prepare` are left before the first step, as when a teacher is trained first."""
        return 0

    def prepare(self) -> None:
        """Do one piece of that work; :meth:`step` does what is left of it."""

    def own_observation(self) -> Tensor:
        """Return this process's rows of :meth:`observation`; all of them unless the learner is spread."""
        return self.observation()

    @abstractmethod
    def step(self, strategy: AttackStrategy) -> StepReport:
        """Train on the next minibatch under ``strategy``: N budgets, or one for all.

        The report's reward is (N,), or a scalar shared by all views. Its terms need ``loss`` and ``grad_norm``;
        ``clean_loss``, ``adv_loss``, ``mixed_loss``, ``alignment`` and ``uniformity`` are shown to agents where given.

        Raises:
            Diverged: when loss or gradient are not finite; the report's ``scalars`` raise it otherwise.
        """

    def try_attack(self, strategy: AttackStrategy) -> Tensor:
        """Return the reward of attacking the next minibatch with ``strategy``, without training on it.

        Needed by policies that rehearse, such as the published one; raises ConfigError where a learner cannot.
        """
        raise ConfigError(
            f"learner.kind: {type(self).__name__} cannot try an attack without training on it, which the policy asks "
            "for; write its try_attack, or choose a policy that learns from the steps themselves (reinforce: norm "
            "group)"
        )

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything the rest of the training depends on: tensors and plain values.

        The network's weights are under ``"target"``.
        """

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state`` was taken; raises CheckpointError, and changes nothing, when unfit."""

    def warm_start(self, path: str | Path) -> None:
        """Take over the network's weights of a checkpoint and nothing else of it."""
        load_official(self.target, load_checkpoint(path))
