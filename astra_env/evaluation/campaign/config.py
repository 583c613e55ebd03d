"""The configuration of an evaluation: what is measured, on what, and how heads are trained first."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from astra_env.config.paths import PATH
from astra_env.config.types import (
    ClosedUnitInterval,
    IntFrom2,
    NonNegativeFinite,
    NonNegativeInt,
    PositiveFinite,
    PositiveInt,
    PositiveShare,
)
from astra_env.errors import ConfigError

if TYPE_CHECKING:
    from astra_env.strategy import Attack

NORMS = ("linf", "l2")
LEARNING_RATES = {"cifar10": 0.01, "cifar100": 0.05, "stl10": 0.1}
"""Of SLF and ALF in the papers; 0.1 for other data sets."""


@dataclass
class EvaluationDataConfig:
    """The images."""

    name: str | None = None
    """Data set, such as digits or cifar10; default the run's own."""
    root: str | None = field(default=None, metadata=PATH)
    """Folder that holds it; default the run's own, else data."""
    image_size: int | None = None
    """Side of the square images; default the run's own, else the data set's."""
    download: bool = False
    """Fetch the data set when it is not under root."""
    cache: str | None = field(default=None, metadata=PATH)
    """Folder for decoded images; default the run's own, else the user's cache folder."""
    holdout: float | None = None
    """Share of the training images that serves as the test split; default the run's own, else none."""
    max_test_images: PositiveInt | None = None
    """Draw this many test images; default all."""
    validation_fraction: float = 0.1
    """Share of the training images that is held out wherever something has to be chosen."""


@dataclass
class EvaluationNetworkConfig:
    """How the networks in the files are read."""

    weights: str | None = None
    """Key of the weights in checkpoints that hold several, such as ema."""
    normalize: str = "auto"
    """Input normalisation where the file says nothing: auto, none, imagenet, cifar10 or cifar100."""
    backbone: str | None = None
    """Code by which a run's encoder was made, when its target.backbone is module:function: imported only if named."""
    branch: Literal["auto", "adv", "clean"] = "auto"
    """BatchNorm branch that is probed and attacked: adv, clean, or auto (clean for runs without attacks)."""


@dataclass
class HeadConfig:
    """Training of a head, or of the whole network under aff; semi_supervised takes only ``augment`` from here."""

    epochs: PositiveInt = 25
    """Passes over the training images."""
    learning_rate: list[PositiveFinite] = field(default_factory=list)
    """Several are compared on held-out training images; default the paper's for the protocol and data set."""
    weight_decay: float = 2e-4
    """Of what is trained."""
    batch_size: PositiveInt | None = None
    """Images per step; default 512, for aff 128."""
    augment: bool = True
    """Crop and flip; without it slf extracts features once and is fast."""


@dataclass
class SemiSupervisedConfig:
    """The protocol semi_supervised, from pseudo-labels to fine-tuning; the defaults are ACL's for CIFAR-10."""

    standard_epochs: PositiveInt = 100
    """Passes over the labelled images of the standard training whose result gives the pseudo-labels."""
    standard_learning_rate: PositiveFinite = 0.1
    """Learning rate of the standard training; x.1 after 39 % and 59 % of its epochs."""
    standard_weight_decay: NonNegativeFinite = 2e-4
    """Weight decay of the standard training."""
    standard_batch_size: IntFrom2 = 128
    """Images per step of the standard training."""
    epochs: PositiveInt = 15
    """Passes of the adversarial fine-tuning over labelled and pseudo-labelled images."""
    learning_rate: PositiveFinite = 0.1
    """Learning rate of the fine-tuning; x.1 after 4/15 and 9/15 of its epochs."""
    weight_decay: NonNegativeFinite = 5e-4
    """Weight decay of the fine-tuning."""
    batch_size: IntFrom2 | None = None
    """Images per step of the fine-tuning, both kinds in proportion; default 250, with less than 5 % of labels 200."""
    beta: NonNegativeFinite = 6.0
    """Weight of KL(natural || adversarial)."""
    alpha: ClosedUnitInterval = 0.5
    """Share of the pseudo-labels in the loss of labelled images, 0 to 1."""
    temperature: PositiveFinite = 1.0
    """Temperature of the pseudo-labels."""
    distillation: NonNegativeFinite = 1.0
    """Weight of all terms with pseudo-labels."""
    attack_steps: NonNegativeInt = 10
    """Steps of 2/255 in 8/255 of the fine-tuning's attack."""
    choose: Literal["held_out", "last"] = "held_out"
    """Which epoch of both trainings is used: held_out, the best on data.validation_fraction of the images; or last."""


@dataclass
class AttackConfig:
    """The attacks, in [0, 1] pixel units or fractions such as 8/255."""

    epsilon: list[float | str] = field(default_factory=lambda: ["8/255"])
    """Radii."""
    steps: PositiveInt = 20
    """Steps of pgd and cw, also in curves."""
    step_size: float | str | None = "2/255"
    """Length of a step; null for 2.5 * epsilon / steps, which curves always use."""
    norm: str = "linf"
    """linf, l2 or module:Class."""
    restarts: PositiveInt = 1
    """Random starts of pgd and cw."""
    batch_size: PositiveInt = 250
    """Images attacked at once; AutoAttack's random starts depend on it."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32, or bf16: pgd and cw look for adversarial images in bfloat16 (labelled so), judged in float32."""


@dataclass
class EvaluationConfig:
    """Everything an evaluation depends on."""

    protocol: Literal["auto", "slf", "alf", "aff", "semi_supervised", "none"] = "auto"
    """slf, alf, aff, semi_supervised, none, or auto: slf for encoders, none for classifiers."""
    label_fraction: PositiveShare = 1.0
    """Share of the training images, class-balanced, whose labels are used; only semi_supervised looks at the others."""
    attacks: list[Literal["pgd", "cw", "autoattack", "autoattack_quick"]] = field(default_factory=lambda: ["pgd"])
    """Beside the clean accuracy: pgd, cw, autoattack, autoattack_quick (two of its four attacks)."""
    curves: list[Literal["radius", "noise", "path"]] = field(default_factory=list)
    """radius, noise, path."""
    corruptions: str | None = field(default=None, metadata=PATH)
    """Unpacked folder of CIFAR-10-C or CIFAR-100-C."""
    seed: int = 0
    """Of heads, splits and attacks."""
    device: str = "auto"
    """cpu, cuda, cuda:N or auto."""
    data: EvaluationDataConfig = field(default_factory=EvaluationDataConfig)
    network: EvaluationNetworkConfig = field(default_factory=EvaluationNetworkConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    semi_supervised: SemiSupervisedConfig = field(default_factory=SemiSupervisedConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)

    def validate(self) -> None:
        """Raise ConfigError naming the first field whose value cannot be used."""
        self._validate_norm()
        _inside("data.validation_fraction", self.data.validation_fraction, 0, 0.5)
        longest = 1 if self.attack.norm == "linf" else float("inf")
        for radius in self.epsilons:
            _inside("attack.epsilon", radius, 0, longest)
        if self.step_size is not None:
            _inside("attack.step_size", self.step_size, 0, longest)
        if self.protocol != "semi_supervised":
            return
        if self.label_fraction == 1:
            raise ConfigError(
                "label_fraction: semi_supervised needs the share of images with labels, below 1; give one with "
                "--label_fraction 0.1"
            )
        for name, value in (("learning_rate", self.head.learning_rate), ("batch_size", self.head.batch_size)):
            if value:
                raise ConfigError(f"head.{name}: semi_supervised has its own; use --semi_supervised.{name}")

    def _validate_norm(self) -> None:
        from astra_env.attacks import get_norm

        norm = self.attack.norm
        get_norm(norm, "attack.")
        if norm not in NORMS and (self.curves or any("autoattack" in attack for attack in self.attacks)):
            raise ConfigError(f"attack.norm: curves and AutoAttack know {' and '.join(NORMS)}, got {norm!r}")

    @property
    def epsilons(self) -> tuple[float, ...]:
        """The radii as numbers."""
        from astra_env.strategy import parse_number  # imports torch, which --help need not wait for

        return tuple(parse_number("attack.epsilon", value) for value in self.attack.epsilon)

    @property
    def step_size(self) -> float | None:
        """The step as a number, or None."""
        from astra_env.strategy import parse_number

        return None if self.attack.step_size is None else parse_number("attack.step_size", self.attack.step_size)

    def attack_within(self, epsilon: float) -> "Attack":
        """Return the attack of pgd and cw at one radius."""
        from astra_env.strategy import Attack

        steps, size, norm = self.attack.steps, self.step_size, self.attack.norm
        return Attack.crossing(epsilon, steps, norm) if size is None else Attack(epsilon, size, steps, norm)

    def learning_rates(self, protocol: str, dataset: str) -> list[float]:
        """Return the learning rates to compare; one is simply used."""
        default = 0.1 if protocol == "aff" else LEARNING_RATES.get(dataset, 0.1)
        return list(self.head.learning_rate) or [default]


def _inside(name: str, value: float, low: float, high: float) -> None:
    if not low < value <= high:
        hint = f"; in 0-255 units write '{value:g}/255'" if name.startswith("attack.") and 1 < value <= 255 else ""
        raise ConfigError(f"{name}: expected a number above {low} and at most {high}, got {value}{hint}")
