"""The sections of a supervised run's configuration: every field with its sentence and, below, what it may be.

Null stands for the method's own value, which is filled in before a section is validated.
"""

from dataclasses import dataclass, replace
from typing import Any

from astra_env.config.checks import at_least, one_of, positive
from astra_env.config.options import RunOptions
from astra_env.errors import ConfigError
from astra_env.models import NETWORKS, NORMALIZATIONS


@dataclass
class NetworkConfig:
    """The classifier."""

    name: str = "preact_resnet18"
    """resnet18, preact_resnet18, bottleneck_resnet26, wrn_28_10, wrn_34_10 or module:function."""
    width: int | None = None
    """Channels of the first stage; default the network's own."""
    normalize: str | None = None
    """none, data (mean and standard deviation of the training images, inside the network), imagenet, cifar10 or
    cifar100 (the usual constants); default the method's."""
    num_classes: int | None = None
    """Number of logits; default the data set's classes."""
    checkpoint: str | None = None
    """Weights to start from: one of our checkpoints or an official one."""

    def validate(self) -> None:
        """Raise ConfigError naming the first field whose value cannot be used."""
        one_of("network.normalize", str(self.normalize), ("data", *NORMALIZATIONS))
        NETWORKS.get(self.name)


@dataclass
class OptimizerConfig:
    """SGD and its learning rate."""

    learning_rate: float = 0.1
    """Learning rate at the start."""
    momentum: float = 0.9
    """Momentum."""
    weight_decay: float = 5e-4
    """Weight decay on every parameter."""
    schedule: str = "piecewise"
    """piecewise or cosine."""
    milestones: list[int] | None = None
    """Epochs, from 0, at which the piecewise rate falls; default the method's."""
    factor: float | None = None
    """What the piecewise rate is multiplied by there; default the method's."""

    def validate(self) -> None:
        """Raise ConfigError naming the first field whose value cannot be used."""
        positive("optimizer.learning_rate", self.learning_rate)
        positive("optimizer.momentum", self.momentum, allow_zero=True)
        positive("optimizer.weight_decay", self.weight_decay, allow_zero=True)
        one_of("optimizer.schedule", self.schedule, ("piecewise", "cosine"))
        milestones = self.milestones or []
        if any(milestone < 0 for milestone in milestones) or sorted(milestones) != list(milestones):
            raise ConfigError(f"optimizer.milestones: expected rising epochs >= 0, got {milestones}; sort them")


@dataclass
class AugmentConfig:
    """How training images are varied."""

    padding: int = 4
    """Pixels added on every side before cropping."""
    padding_mode: str | None = None
    """zero or reflect; default the method's."""
    flip: bool = True
    """Mirror half of the images."""
    autoaugment: str | None = None
    """never, always or second_half (of the run): torchvision's CIFAR-10 policy; default the method's."""
    cutout: int | None = None
    """Side of the blackened square in pixels; default half the image in epochs with AutoAugment, else 0."""
    cutmix: bool = False
    """Paste a box of another image into every image and mix their labels."""
    cutmix_alpha: float = 1.0
    """Of the Beta distribution of the mixed area."""

    def validate(self) -> None:
        """Raise ConfigError naming the first field whose value cannot be used."""
        at_least("augment.padding", self.padding, 0)
        one_of("augment.padding_mode", str(self.padding_mode), ("zero", "reflect"))
        one_of("augment.autoaugment", str(self.autoaugment), ("never", "always", "second_half"))


@dataclass
class AverageConfig:
    """The exponential moving average of the weights."""

    enabled: bool | None = None
    """Keep the average; default as the method needs it."""
    decay: float = 0.999
    """Share of the old average in the new one, after every step."""
    start_epoch: int = 105
    """Epoch, from 0, at whose start the average begins as a copy; rebat's regulariser starts with it."""

    def validate(self) -> None:
        """Raise ConfigError naming the first field whose value cannot be used."""
        share("ema.decay", self.decay)


@dataclass
class ValidationConfig:
    """The slice of the training images on which the best model is selected."""

    size: int = 1000
    """Held-out training images, every class in proportion."""
    steps: int = 10
    """Steps of the PGD attack on them; radius and step size are those of training."""
    every: int = 1
    """Epochs between validations; the last epoch is always validated."""
    batch_size: int = 250
    """Images attacked at once."""

    def validate(self) -> None:
        """Raise ConfigError naming the first field whose value cannot be used."""
        for name, least in (("size", 1), ("steps", 0), ("every", 1), ("batch_size", 1)):
            at_least(f"validation.{name}", getattr(self, name), least)


@dataclass
class TestConfig:
    """The measurement at the end of the run, on the test images; never used to select anything."""

    enabled: bool = True
    """Measure when the run is finished."""
    steps: int = 20
    """Steps of the PGD attack, at training's radius and step size."""
    max_images: int | None = None
    """Draw this many test images; default all."""
    batch_size: int = 250
    """Images attacked at once."""

    def validate(self) -> None:
        """Raise ConfigError naming the first field whose value cannot be used."""
        at_least("test.batch_size", self.batch_size, 1)


@dataclass
class RunConfig(RunOptions):
    """What a run writes, and how often."""

    log_every: int = 50
    """Steps between lines of losses in metrics.jsonl."""
    progress: bool = True
    """Show a progress bar on a terminal."""


def share(name: str, value: float) -> None:
    """Raise ConfigError unless ``value`` is a share of a whole."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name}: expected a share in [0, 1], got {value}; change it")


def filled(section: Any, **defaults: Any) -> Any:
    """Return a copy of a section in which ``defaults`` stand for fields that are None."""
    return replace(section, **{name: value for name, value in defaults.items() if getattr(section, name) is None})
