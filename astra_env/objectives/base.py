"""What a training objective is: the part of a learner that differs from method to method."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from astra_env.attacks import Contrastive, Objective
from astra_env.augment import SimCLRAugment
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.data import ImageDataset
from astra_env.distributed import ALONE, World
from astra_env.errors import ConfigError
from astra_env.models import Target
from astra_env.registry import Registry
from astra_env.strategy import AttackStrategy


@dataclass(frozen=True)
class Losses:
    """The scalar to minimise and the named scalars worth watching, all on the device."""

    total: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """One minibatch.

    Attributes:
        views: (2B, 3, H, W) float in [0, 1]; rows 2k and 2k+1 are the views of one image.
            Of several ranks, the own ones of this rank.
        indices: int64 (B,), the images' places in the data set; on the CPU. Those of the whole batch on every rank.
        step: 0-based index of the training step.
    """

    views: Tensor
    indices: Tensor
    step: int = 0


@dataclass(frozen=True)
class Setting:
    """What an objective may build on.

    Attributes:
        config: of the run.
        target: the network that is trained.
        dataset: its images.
        device: where they are.
        total_steps: length of the training; an estimate when it is given as ``learner.budget``.
        steps_per_epoch: minibatches in one pass over the images.
        world: the ranks that train together.
        spent: returns the share of ``learner.budget`` used up; None when the length is given otherwise.
    """

    config: ExperimentConfig
    target: Target
    dataset: ImageDataset
    device: torch.device
    total_steps: int
    steps_per_epoch: int
    world: World = ALONE
    spent: Callable[[], float] | None = None


class Encoder:
    """A network in training mode, as objectives use it: float32 features whatever the precision within.

    Args:
        network: called as ``network(views, branch=branch)``; has ``embed`` and ``project``.
        autocast: dtype of the passes; None for float32.
    """

    def __init__(self, network: Target, autocast: torch.dtype | None = None) -> None:
        self.network = network
        self.autocast = autocast

    def __call__(self, views: Tensor, branch: str) -> Tensor:
        """Views (N, 3, H, W) in [0, 1] -> projected features (N, D)."""
        return self._run(views, lambda: self.network(views, branch=branch))

    def embed(self, views: Tensor, branch: str) -> Tensor:
        """Views (N, 3, H, W) in [0, 1] -> backbone embeddings (N, E)."""
        return self._run(views, lambda: self.network.embed(views, branch))

    def project(self, embedding: Tensor, branch: str) -> Tensor:
        """Backbone embeddings (N, E) -> projected features (N, D)."""
        return self._run(embedding, lambda: self.network.project(embedding, branch))

    def _run(self, values: Tensor, forward: Callable[[], Tensor]) -> Tensor:
        self.network.train()
        with torch.autocast(values.device.type, self.autocast, enabled=self.autocast is not None):
            outputs = forward()
        return outputs.to(values.dtype)


@dataclass
class NoOptions:
    """The options of an objective that has none."""


class TrainingObjective:
    """A self-supervised loss and what belongs to it; the defaults are ASTrA's: both views attacked, NT-Xent raised.

    Subclasses register under a name, say what they need in class attributes and override what they do differently.

    Attributes:
        attacked: whether adversarial views are made at all.
        branch: the branch to evaluate the trained network with.
        clean_branch: the branch that clean views go through; "adv" for methods with a single set of norms.
        clip_start: whether the start of the attack is clipped to the image box before the first forward.
        whole_batch: whether :meth:`outputs` treats rows differently, and so needs all of them in their order.
        Options: dataclass of ``learner.objective_args``.
        spread: whether several processes, or chunks, may share the work: all it takes from the network in training are
            features by ``encode(views, branch)``, which then are those of the whole batch, and it makes nothing else of
            ``batch.views`` or ``adversarial``, which then are a rank's own.
    """

    attacked: ClassVar[bool] = True
    branch: ClassVar[str] = "adv"
    clean_branch: ClassVar[str] = "clean"
    clip_start: ClassVar[bool] = True
    whole_batch: ClassVar[bool] = False
    Options: ClassVar[type] = NoOptions
    spread: ClassVar[bool] = False

    def __init__(self, setting: Setting, options: Any) -> None:
        self.setting = setting
        self.options = options
        self.target = setting.target
        self.temperature = setting.config.learner.temperature

    def __call__(self, encode: Encoder, batch: Batch, adversarial: Tensor) -> Losses:
        """Return the losses of one minibatch; ``adversarial`` (2B, 3, H, W) are its attacked views."""
        raise TypeError(f"{type(self).__name__} defines no loss: override __call__(encode, batch, adversarial)")

    @property
    def left_to_prepare(self) -> int:
        """How many pieces of work are left before the first step; :meth:`state_dict` says where they stand."""
        return 0

    def prepare(self) -> None:
        """Do one piece of them: what is worth a progress bar and a checkpoint in the middle."""

    def augmentation(self, default: SimCLRAugment, step: int) -> Callable[..., Tensor]:
        """Return the augmentation of one step (0-based)."""
        return default

    def budgets(self, strategy: AttackStrategy) -> AttackStrategy:
        """Return the attack of every view (2B) that comes of the chosen ones."""
        return strategy

    def attack_goal(self, batch: Batch) -> Objective:
        """Return what the attack maximises: a function of :meth:`outputs` of all 2B views."""
        return Contrastive(self.temperature)

    def outputs(self, views: Tensor, branch: str) -> Tensor:
        """Views (n, 3, H, W) -> what the attack's goal looks at (n, D), in the mode that the target is in.

        Independently per view in eval mode, unless ``whole_batch``: then these are all 2B views.
        """
        return self.target(views, branch=branch)

    def features(self, outputs: Tensor) -> Tensor:
        """Return the part of :meth:`outputs` (n, D) that rewards look at."""
        return outputs

    def reward_loss(self, batch: Batch) -> Callable[[Tensor, str], Tensor] | None:
        """Return the loss whose gain is the reward: of features (2B, D) and "mean" or "none"; None for NT-Xent."""
        return None

    def parameters(self) -> list[nn.Parameter]:
        """Return what is optimised besides the target network."""
        return []

    def before_update(self) -> None:
        """Look at the target network once more before it changes, as a momentum encoder does that follows it."""

    def after_update(self) -> None:
        """Follow the target network's update."""

    @property
    def encoder(self) -> Target:
        """The network to evaluate."""
        return self.target

    def state_dict(self) -> dict[str, Any]:
        """Return what the objective remembers: tensors, plain values, lists and mappings of them.

        A state to load must have the structure, shapes and dtypes of this one; an objective whose states differ in
        them has a ``state_form()`` too, see :mod:`astra_env.storage.state`.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that fits; on any error the learner gives the one before."""

    @property
    def foldable(self) -> bool:
        """Whether the attack looks at the target network's features alone, so that a folded copy can stand in."""
        return type(self).outputs is TrainingObjective.outputs


OBJECTIVES: Registry[Callable[[Setting, Any], TrainingObjective]] = Registry("learner.objective")


def objective_factory(config: ExperimentConfig) -> Callable[[Setting], TrainingObjective]:
    """Return the constructor of ``learner.objective`` with its checked ``learner.objective_args``.

    Raises:
        ConfigError: for an unknown objective, or an argument it does not have or of another type.
    """
    cls: Any = OBJECTIVES.get(config.learner.objective)
    options = read_options(config.learner.objective, cls, config.learner.objective_args)
    return lambda setting: cls(setting, options)


def read_options(name: str, cls: Any, arguments: Mapping[str, Any]) -> Any:
    """Build an objective's options from ``arguments``; raises ConfigError naming the field."""
    schema = getattr(cls, "Options", NoOptions)
    if schema is NoOptions:
        for key in arguments:
            raise ConfigError(f"learner.objective_args.{key}: learner.objective {name!r} has no arguments")
        return NoOptions()
    try:
        return load_config(schema, arguments)
    except ConfigError as error:
        raise ConfigError(f"learner.objective_args.{error}") from error
