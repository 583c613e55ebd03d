"""What the rooms expect of each other: policies that choose attacks and learners that train under them."""

import inspect
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from astra_env.config.schema import ExperimentConfig
from astra_env.data import ImageDataset
from astra_env.distributed import ALONE, World, world_of
from astra_env.errors import ConfigError, Diverged
from astra_env.learner.spending import ComputeMeter
from astra_env.models import load_official
from astra_env.modes import at_the_door
from astra_env.storage.checkpoint import load_checkpoint
from astra_env.strategy import AttackStrategy, StrategySpace


@dataclass
class StepReport:
    """The outcome of one training step.

    Attributes:
        step: 0-based index of the step.
        learning_rate: the one used.
        strategy: the attack of every view, or None when the objective uses none.
        reward: scalar, or (N,) with one reward per view; measured before the update.
        terms: scalars to watch, on the device: loss, its parts, grad_norm, alignment, uniformity.
        views: the clean views (N, 3, H, W) in [0, 1].
        adversarial: the attacked views; the clean ones when there is no attack.
        policy_terms: what a learning policy reports, if one acted.
    """

    step: int
    learning_rate: float
    strategy: AttackStrategy | None
    reward: Tensor
    terms: dict[str, Tensor]
    views: Tensor
    adversarial: Tensor
    policy_terms: dict[str, float | Tensor] = field(default_factory=dict)

    def scalars(self) -> dict[str, float]:
        """Bring every scalar to the host in one transfer.

        Raises:
            Diverged: when the loss or the gradient is not finite. The weights may be spoilt: go back to a checkpoint.
        """
        device = self.reward.device
        tensors = {**self.terms, "reward": self.reward.mean()}
        if self.strategy is not None:
            tensors["mean_epsilon"] = self.strategy.epsilon.mean()
            tensors["mean_steps"] = self.strategy.steps.float().mean()
            tensors["mean_step_size"] = self.strategy.step_size.mean()
        tensors |= {
            f"policy/{name}": torch.as_tensor(value, device=device) for name, value in self.policy_terms.items()
        }
        values = torch.stack([value.detach().to(device, torch.float32) for value in tensors.values()]).tolist()
        scalars = dict(zip(tensors, values, strict=True))
        for name in ("loss", "grad_norm", "policy/loss", "policy/grad_norm"):
            if not math.isfinite(scalars.get(name, 0.0)):
                raise Diverged(
                    f"training diverged at step {self.step}: {name} is {scalars[name]}; lower learner.learning_rate "
                    "(or the policy's), or set run.on_divergence to rollback"
                )
        return {**scalars, "learning_rate": self.learning_rate}


@runtime_checkable
class Policy(Protocol):
    """Chooses attacks; the signature is Stable-Baselines3's, so a trained SB3 model is a policy as it stands.

    A policy that sets ``accepts_tensors = True`` is given uint8 tensors on the learner's device, others NumPy arrays.
    Optional methods: ``learn_from(observation, actions, reward) -> dict`` to learn from each step;
    ``rehearse(observation) -> actions or None`` to have attacks tried before the step, whose reward ``learn_from`` is
    given first; ``follow(progress)`` to be told before each step which share of the training budget is used up;
    ``state_dict()`` / ``load_state_dict(state)`` to be saved with a run. One that has a ``network``, a module that
    looks at every view, is charged its passes.
    """

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Return (actions, state): integer grid indices (N, 3) for a batch of N observations, (3,) for a single one."""


DOORS = (
    "__init__", "observation", "own_observation", "prepare", "step", "try_attack", "state_dict", "load_state_dict",
    "warm_start", "views", "batch", "images",
)  # fmt: skip
"""Methods by which callers enter a learner; those of one's own, with these names, too."""


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
        total_steps: length of the training in steps; an estimate when it is given as ``learner.budget``.
        step_count: steps taken.
        warmup_steps: steps until the learning rate is at its height, for policies with such a schedule.
        learning_rate_scale: factor on the learning rate, lowered when a run that diverged was rolled back.
        norm: of the ball that attacks stay in, "linf" or "l2".
        world: the ranks over which every batch is spread.
        attack_steps: gradient steps spent on attacks so far, over all views; a scalar that stays on the device.
        meter: counts what the training spends; :func:`astra_env.learner.make.make_learner` gives one to learners that
            have none. A learner of your own that is to be resumed under ``learner.budget`` saves the meter's state.
        progress_reward: whether the rewards of a chunk's steps add up (an outcome's) instead of being averaged.
    """

    split: ClassVar[str] = "train"
    """The split of the data set it trains on: "train" (labelled), or "pretrain", which may have more images."""
    classifies: ClassVar[bool] = True
    """Whether the network gives logits of the data set's classes; otherwise it is an encoder, and is probed."""
    shown: ClassVar[tuple[str, ...]] = ()
    """Terms of its reports that environments show in ``info`` beside those that every learner has."""
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
    meter: ComputeMeter | None = None
    progress_reward: bool = False

    def __init_subclass__(cls, **settings: Any) -> None:
        """Let every learner's doors compute in PyTorch modes of their own, whatever modes the caller is in."""
        super().__init_subclass__(**settings)
        for name in DOORS:
            if inspect.isfunction(method := vars(cls).get(name)):
                setattr(cls, name, at_the_door(method))

    @classmethod
    def views_per_image(cls, config: ExperimentConfig) -> int:
        """How many views of each image one step trains on."""
        return 1

    @classmethod
    def view_size(cls, config: ExperimentConfig, dataset: ImageDataset) -> int:
        """Side of the views in pixels."""
        return dataset.images.shape[-1]

    @classmethod
    def budget_of(cls, config: ExperimentConfig, images: int) -> int | None:
        """Length of the training in steps as far as configuration and number of images tell it, else None."""
        options = config.learner
        if options.budget is not None:
            return None  # how many steps it buys depends on the attacks
        if options.total_steps is not None:
            return options.total_steps
        per_epoch = images // options.batch_size if options.drop_last else -(-images // options.batch_size)
        return options.epochs * per_epoch or None

    @property
    def views_per_step(self) -> int:
        """How many views one step attacks."""
        return self.views_per_image(self.config) * self.config.learner.batch_size

    @property
    def finished(self) -> bool:
        """Whether the training budget is used up."""
        return self.progress >= 1

    @property
    def progress(self) -> float:
        """Share of the training budget used up: of ``learner.budget`` in F where it is given, else of the steps."""
        budget = self.config.learner.budget
        return self.step_count / self.total_steps if budget is None else self.compute_spent / budget

    @property
    def compute_spent(self) -> float:
        """What the training has cost so far, in F (forward passes of the target on one view) per view."""
        return 0.0 if self.meter is None else self.meter.spent / self.views_per_step

    def begin_again(self) -> None:
        """Give the same network another budget."""
        self.step_count = 0
        if self.meter is not None:
            self.meter.passes = self.meter.spent = 0.0

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
        """Return the views of the next step, uint8 (N, 3, H, W), contiguous; the same until :meth:`step`."""

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


def interact(learner: Learner, policy: Policy) -> StepReport:
    """Let ``policy`` choose the attacks of one training step and learn from the reward, if it learns.

    Raises:
        InputError: when the policy answers with anything but grid indices for every view.
    """
    observation = learner.observation()
    follow = getattr(policy, "follow", None)
    if follow is not None:
        follow(learner.progress)
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
