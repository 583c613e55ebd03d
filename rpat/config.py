"""The configuration of a supervised run: every field with its sentence, null where the method's own value is used."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from astra_env.config.checks import at_least, positive
from astra_env.config.options import SpeedOptions
from astra_env.config.schema import DataConfig
from astra_env.errors import ConfigError
from astra_env.strategy import check_pixel_units, parse_number
from rpat.methods import Budget, RobustPerception, make_method, method_class
from rpat.methods.base import Method
from rpat.schedules import default_milestones
from rpat.sections import (
    AugmentConfig,
    AverageConfig,
    NetworkConfig,
    OptimizerConfig,
    RunConfig,
    TestConfig,
    ValidationConfig,
    filled,
    share,
)

PRESET_PACKAGE = "rpat.presets"
L2_LIMIT = 10.0
"""Largest l-2 radius taken as meant: beyond it the number is in 0-255 units."""


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
    rp_weight: float = 1.0
    """Weight lambda of robust perception."""
    rp_rate: float = 0.5
    """Share r of the clean image in the mixed one."""
    rp_start_epoch: int = 0
    """Epoch, from 0, at which robust perception starts."""
    norm: str = "linf"
    """linf or l2."""
    epsilon: float | str = "8/255"
    """Radius in [0, 1] pixel units (l2: length of the whole perturbation), a number or a fraction."""
    step_size: float | str = "2/255"
    """Length of a step of the attack in the same units."""
    steps: int = 10
    """Steps of the training attack."""
    epochs: int | None = None
    """Length of the run; default the method's."""
    batch_size: int = 128
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
    def budget(self) -> Budget:
        """The training attack in numbers."""
        return Budget(
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
            network=filled(self.network, normalize=defaults.normalize),
            optimizer=replace(filled(self.optimizer, factor=defaults.factor), milestones=milestones),
            augment=filled(self.augment, padding_mode=defaults.padding_mode, autoaugment=defaults.autoaugment),
            ema=filled(self.ema, enabled=defaults.average),
        )

    def validate(self) -> None:
        """Raise ConfigError naming the first field whose value cannot be used; warn of odd ones."""
        method = self.make_method()
        self._check_attack()
        at_least("batch_size", self.batch_size, 2)
        positive("rp_weight", self.rp_weight, allow_zero=True)
        share("rp_rate", self.rp_rate)
        if self.epochs is not None:
            at_least("epochs", self.epochs, 1)
        settled = self.resolved()
        for name in ("learner", "network", "optimizer", "augment", "ema", "validation", "test", "run"):
            getattr(settled, name).validate()
        settled._check_method(method)
        settled._check_epochs()

    def check_last_batch(self, images: int, ranks: int) -> None:
        """Check that the last batch of an epoch, when it is kept, can be shared by the ranks and has a variance."""
        rest = images % self.batch_size
        if not self.drop_last and rest and (rest == 1 or rest % ranks):
            raise ConfigError(
                f"drop_last: the last batch of an epoch would have {rest} of the {images} images; it needs 2 or more "
                f"and a multiple of the {ranks} processes; set --drop_last true or change --validation.size"
            )

    def _check_attack(self) -> None:
        """Check norm, radius and step size; warn of lengths that look like 0-255 units."""
        if self.norm not in ("linf", "l2"):
            raise ConfigError(f"norm: expected linf or l2, got {self.norm!r}; choose one of them")
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
        at_least("steps", self.steps, 0)
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
        falls = self.optimizer.schedule == "piecewise" and milestones == default_milestones(epochs)
        if falls and min(milestones) >= epochs:
            warnings.warn(
                f"optimizer.milestones: the learning rate falls at epochs {milestones}, after the end of this run of "
                f"{epochs} epochs; set --optimizer.milestones",
                stacklevel=4,
            )
