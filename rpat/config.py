"""The configuration of a supervised run: every field with its sentence, null where the method's own value is used."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

from astra_env.attacks import get_norm
from astra_env.config.checks import require_compilable
from astra_env.config.options import RunOptions, SpeedOptions
from astra_env.config.paths import PATH
from astra_env.config.schema import DataConfig
from astra_env.config.types import (
    ClosedUnitInterval,
    IntFrom2,
    NonNegativeFinite,
    NonNegativeInt,
    PositiveFinite,
    PositiveInt,
)
from astra_env.errors import ConfigError
from astra_env.models import NETWORKS
from astra_env.strategy import Attack, check_pixel_units, parse_number
from rpat.methods import Method, RobustPerception, make_method, method_class
from rpat.schedules import default_milestones

PRESET_PACKAGE = "rpat.presets"
L2_LIMIT = 10.0
"""Largest l-2 radius taken as meant: beyond it the number is in 0-255 units."""


@dataclass
class NetworkConfig:
    """The classifier."""

    name: str = "preact_resnet18"
    """resnet18, preact_resnet18, bottleneck_resnet26, wrn_28_10, wrn_34_10 or module:function."""
    width: int | None = None
    """Channels of the first stage; default the network's own."""
    normalize: Literal["none", "data", "imagenet", "cifar10", "cifar100"] | None = None
    """none, data (mean and standard deviation of the training images, inside the network), imagenet, cifar10 or
    cifar100 (the usual constants); default the method's."""
    num_classes: int | None = None
    """Number of logits; default the data set's classes."""
    checkpoint: str | None = field(default=None, metadata=PATH)
    """Weights to start from: one of our checkpoints or an official one."""
    allow_missing: list[str] = field(default_factory=list)
    """Parts that start anew where the checkpoint lacks them or has another size, by prefix, such as linear."""


@dataclass
class OptimizerConfig:
    """SGD and its learning rate."""

    learning_rate: PositiveFinite = 0.1
    """Learning rate at the start."""
    momentum: NonNegativeFinite = 0.9
    """Momentum."""
    weight_decay: NonNegativeFinite = 5e-4
    """Weight decay on every parameter."""
    schedule: Literal["piecewise", "cosine"] = "piecewise"
    """piecewise or cosine."""
    milestones: list[int] | None = None
    """Epochs, from 0, at which the piecewise rate falls; default the method's."""
    factor: float | None = None
    """What the piecewise rate is multiplied by there; default the method's."""


@dataclass
class AugmentConfig:
    """How training images are varied."""

    padding: NonNegativeInt = 4
    """Pixels added on every side before cropping."""
    padding_mode: Literal["zero", "reflect"] | None = None
    """zero or reflect; default the method's."""
    flip: bool = True
    """Mirror half of the images."""
    autoaugment: Literal["never", "always", "second_half"] | None = None
    """never, always or second_half (of the run): torchvision's CIFAR-10 policy; default the method's."""
    cutout: int | None = None
    """Side of the blackened square in pixels; default half the image in epochs with AutoAugment, else 0."""
    cutmix: bool = False
    """Paste a box of another image into every image and mix their labels."""
    cutmix_alpha: float = 1.0
    """Of the Beta distribution of the mixed area."""


@dataclass
class AverageConfig:
    """The exponential moving average of the weights."""

    enabled: bool | None = None
    """Keep the average; default as the method needs it."""
    decay: ClosedUnitInterval = 0.999
    """Share of the old average in the new one, after every step."""
    start_epoch: int = 105
    """Epoch, from 0, at whose start the average begins as a copy; rebat's regulariser starts with it."""


@dataclass
class ValidationConfig:
    """The slice of the training images on which the best model is selected."""

    size: PositiveInt = 1000
    """Held-out training images, every class in proportion."""
    steps: NonNegativeInt = 10
    """Steps of the PGD attack on them; radius and step size are those of training."""
    every: PositiveInt = 1
    """Epochs between validations; the last epoch is always validated."""
    batch_size: PositiveInt = 250
    """Images attacked at once."""


@dataclass
class TestConfig:
    """The measurement at the end of the run, on the test images; never used to select anything."""

    enabled: bool = True
    """Measure when the run is finished."""
    steps: NonNegativeInt = 20
    """Steps of the PGD attack, at training's radius and step size."""
    max_images: int | None = None
    """Draw this many test images; default all."""
    batch_size: PositiveInt = 250
    """Images attacked at once."""


@dataclass
class RunConfig(RunOptions):
    """What a run writes, and how often."""

    log_every: PositiveInt = 50
    """Steps between lines of losses in metrics.jsonl."""
    progress: bool = True
    """Show a progress bar on a terminal."""


@dataclass
class RPATConfig:
    """Everything a supervised run depends on."""

    renamed: ClassVar[Mapping[str, str]] = {
        "sync_bn": "learner.sync_bn",
        **{f"run.{option.name}": f"learner.{option.name}" for option in fields(SpeedOptions)},
    }
    """Old keys and what they are called now."""

    seed: int = 0
    """Seed of every generator of the run."""
    device: str = "auto"
    """cpu, cuda, cuda:N or auto."""
    method: str = "pgd_at"
    """pgd_at, trades, mart, consistency, rebat or module:MyMethod."""
    method_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the method, such as {beta: 6}."""
    robust_perception: bool = True
    """Add the robust-perception term (in rebat: replace its regulariser, which makes it RPAT++)."""
    rp_weight: NonNegativeFinite = 1.0
    """Weight lambda of robust perception."""
    rp_rate: ClosedUnitInterval = 0.5
    """Share r of the clean image in the mixed one."""
    rp_start_epoch: int = 0
    """Epoch, from 0, at which robust perception starts."""
    norm: str = "linf"
    """linf, l2 or module:Class."""
    epsilon: float | str = "8/255"
    """Radius in [0, 1] pixel units (l2: length of the whole perturbation), a number or a fraction."""
    step_size: float | str = "2/255"
    """Length of a step of the attack in the same units."""
    steps: NonNegativeInt = 10
    """Steps of the training attack."""
    epochs: PositiveInt | None = None
    """Length of the run; default the method's."""
    batch_size: IntFrom2 = 128
    """Images per step; each gives as many rows as the method has views."""
    drop_last: bool = True
    """Leave out the images of an epoch that do not fill a batch, others in every epoch; false as published."""
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    learner: SpeedOptions = field(default_factory=SpeedOptions)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    ema: AverageConfig = field(default_factory=AverageConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    test: TestConfig = field(default_factory=TestConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def budget(self) -> Attack:
        """The training attack in numbers."""
        return Attack(
            parse_number("epsilon", self.epsilon), parse_number("step_size", self.step_size), self.steps, self.norm
        )

    @property
    def perception(self) -> RobustPerception | None:
        """Robust perception's weight and rate; None when it is off."""
        return RobustPerception(self.rp_weight, self.rp_rate) if self.robust_perception else None

    def make_method(self) -> Method:
        """Return the method with its arguments; raises ConfigError when one of them cannot be used."""
        return make_method(self.method, self.method_args)

    def resolved(self) -> "RPATConfig":
        """Return a copy in which the method's published settings stand where this one says null."""
        defaults = method_class(self.method).defaults
        epochs = defaults.epochs if self.epochs is None else self.epochs
        milestones = self.optimizer.milestones
        if milestones is None:
            milestones = defaults.milestones(epochs)
        return replace(
            self,
            epochs=epochs,
            network=_filled(self.network, normalize=defaults.normalize),
            optimizer=replace(_filled(self.optimizer, factor=defaults.factor), milestones=milestones),
            augment=_filled(self.augment, padding_mode=defaults.padding_mode, autoaugment=defaults.autoaugment),
            ema=_filled(self.ema, enabled=defaults.average),
        )

    def validate(self) -> None:
        """Raise ConfigError naming the first field whose value cannot be used; warn of odd ones."""
        method = self.make_method()
        self._check_attack()
        NETWORKS.get(self.network.name)
        require_compilable("learner", self.learner)
        settled = self.resolved()
        settled._check_method(method)
        settled._check_epochs()

    def _check_attack(self) -> None:
        """Check norm, radius and step size; warn of lengths that look like 0-255 units."""
        get_norm(self.norm)
        for name in ("epsilon", "step_size"):
            value = parse_number(name, getattr(self, name))
            if self.norm == "linf":
                check_pixel_units(name, value)
            elif not 0 <= value <= L2_LIMIT:
                raise ConfigError(
                    f"{name}: expected an l2 length in [0, {L2_LIMIT:g}] in [0, 1] pixel units, got {value:g}; "
                    f"in 0-255 units write '{value:g}/255'"
                )
            elif value > 1:
                warnings.warn(
                    f"{name}: {value:g} is a large l2 length in [0, 1] pixel units; if it is in 0-255 units, "
                    f"write '{value:g}/255'",
                    stacklevel=4,
                )
        if self.budget.step_size > self.budget.epsilon:
            warnings.warn(
                f"step_size: {self.step_size} is larger than epsilon {self.epsilon}, so the attack jumps from edge "
                "to edge of the ball; lower --step_size",
                stacklevel=4,
            )

    def _check_method(self, method: Method) -> None:
        """Check what the method needs of the rest; the configuration is resolved."""
        if method.attack_mode == "train" and self.learner.fold_batchnorm:
            raise ConfigError(
                f"method_args.attack_mode: {self.method} attacks the network in training mode, which cannot be folded "
                "into a copy; set learner.fold_batchnorm false or attack_mode eval"
            )
        if self.augment.cutmix and method.hard_labels:
            raise ConfigError(
                f"augment.cutmix: {self.method} needs one class per image and CutMix mixes them; "
                "set --augment.cutmix false or choose another method"
            )
        if method.needs_average and not self.ema.enabled:
            raise ConfigError(f"ema.enabled: {self.method} learns from the averaged weights; set --ema.enabled true")

    def _check_epochs(self) -> None:
        """Check everything that starts at an epoch; the configuration is resolved."""
        epochs = self.epochs or 0
        if self.robust_perception and not 0 <= self.rp_start_epoch < epochs:
            raise ConfigError(
                f"rp_start_epoch: expected 0..{epochs - 1} in a run of {epochs} epochs, got {self.rp_start_epoch}, so "
                "robust perception would never start; lower it or set --robust_perception false"
            )
        if self.ema.enabled and not 0 <= self.ema.start_epoch < epochs:
            raise ConfigError(
                f"ema.start_epoch: expected 0..{epochs - 1} in a run of {epochs} epochs, got {self.ema.start_epoch}, "
                f"so the warm-up of {self.method} would never end; lower --ema.start_epoch or raise --epochs"
            )
        milestones = self.optimizer.milestones or []
        if any(milestone < 0 for milestone in milestones) or sorted(milestones) != list(milestones):
            raise ConfigError(f"optimizer.milestones: expected rising epochs >= 0, got {milestones}; sort them")
        falls = self.optimizer.schedule == "piecewise" and milestones == default_milestones(epochs)
        if falls and min(milestones) >= epochs:
            warnings.warn(
                f"optimizer.milestones: the learning rate falls at epochs {milestones}, after the end of this run of "
                f"{epochs} epochs; set --optimizer.milestones",
                stacklevel=4,
            )


def _filled(section: Any, **defaults: Any) -> Any:
    """Return a copy of a section in which ``defaults`` stand for fields that are None."""
    return replace(section, **{name: value for name, value in defaults.items() if getattr(section, name) is None})
