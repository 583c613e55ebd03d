"""The configuration of a supervised run: every field with its sentence, null where the method's own value is used."""

from dataclasses import dataclass, field, replace
from typing import Any

from astra_env.config.checks import require_compilable
from astra_env.config.paths import PATH
from astra_env.config.schema import DataConfig
from astra_env.errors import ConfigError
from astra_env.strategy import Attack, parse_number
from rpat.config_checks import check_attack, check_attacked_network, check_choices, check_epochs, check_numbers
from rpat.methods import Method, RobustPerception, make_method, method_class

PRESET_PACKAGE = "rpat.presets"


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
    checkpoint: str | None = field(default=None, metadata=PATH)
    """Weights to start from: one of our checkpoints or an official one."""
    allow_missing: list[str] = field(default_factory=list)
    """Parts that start anew where the checkpoint lacks them or has another size, by prefix, such as linear."""


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


@dataclass
class AverageConfig:
    """The exponential moving average of the weights."""

    enabled: bool | None = None
    """Keep the average; default as the method needs it."""
    decay: float = 0.999
    """Share of the old average in the new one, after every step."""
    start_epoch: int = 105
    """Epoch, from 0, at whose start the average begins as a copy; rebat's regulariser starts with it."""


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


@dataclass
class RunConfig:
    """What a run writes, and how often."""

    log_every: int = 50
    """Steps between lines of losses in metrics.jsonl."""
    checkpoint_every: int = 1
    """Epochs between checkpoints."""
    keep_every: int = 0
    """Epochs between checkpoints that are kept for good; 0 to keep only the last ones."""
    progress: bool = True
    """Show a progress bar on a terminal."""
    precision: str = "fp32"
    """fp32, or bf16 for autocast with float32 losses and perturbations."""
    channels_last: bool = False
    """Keep the network and the images in channels-last memory order; not on a CPU if narrower than 16."""
    fold_batchnorm: bool = False
    """Attack a copy of the network whose BatchNorms are folded into its weights: equal up to rounding, faster."""
    compile: str = "none"
    """torch.compile mode of that copy: none, default, reduce-overhead (CUDA graphs) or max-autotune."""
    tf32: bool | None = None
    """Allow or forbid TF32 products on CUDA; default PyTorch's own choice."""
    fast: bool = False
    """Use what pays on the device: bf16 where it has instructions for it, channels_last, fold_batchnorm, tf32."""
    threads: int | None = None
    """CPU threads; default PyTorch's own choice."""
    timeout_seconds: float = 600.0
    """Of several processes: how long each waits for the others before it ends with an error."""
    on_divergence: str = "raise"
    """raise, or rollback: restore the last checkpoint and continue at half the learning rate."""
    deterministic: bool = False
    """Use deterministic kernels only; matters on CUDA, where others are faster (on the CPU a run repeats anyway)."""


@dataclass
class RPATConfig:
    """Everything a supervised run depends on."""

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
    sync_bn: bool = False
    """Of several processes on CUDA: normalise by the whole batch (SyncBatchNorm); else each by its own rows."""
    batch_size: int = 128
    """Images per step; each gives as many rows as the method has views."""
    drop_last: bool = True
    """Leave out the images of an epoch that do not fill a batch, others in every epoch; false as published."""
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
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
        check_attack(self)
        check_numbers(self)
        require_compilable("run", self.run)
        settled = self.resolved()
        check_choices(settled)
        check_attacked_network(settled, method)
        check_epochs(settled, method)
        if self.augment.cutmix and method.hard_labels:
            raise ConfigError(
                f"augment.cutmix: {self.method} needs one class per image and CutMix mixes them; "
                "set --augment.cutmix false or choose another method"
            )


def _filled(section: Any, **defaults: Any) -> Any:
    """Return a copy of a section in which ``defaults`` stand for fields that are None."""
    return replace(section, **{name: value for name, value in defaults.items() if getattr(section, name) is None})
