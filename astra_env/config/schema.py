"""The configuration of a run under a policy's attacks: one dataclass a room, every field with its sentence.

Values come from the dataclass defaults, then a preset or YAML file, then dotted overrides; see
:mod:`astra_env.config.reading` for how they are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from astra_env.config.checks import at_least, one_of, require_attackable_in_training_mode, require_compilable
from astra_env.config.options import RunOptions, SpeedOptions
from astra_env.config.paths import PATH, path_keys
from astra_env.config.types import (
    ClosedUnitInterval,
    Finite,
    NonNegativeFinite,
    NonNegativeInt,
    PositiveFinite,
    PositiveInt,
)
from astra_env.errors import ConfigError


@dataclass
class DataConfig:
    """Which images, from where."""

    name: str = "digits"
    """digits, cifar10, cifar100, stl10, tiny_imagenet, module:function, or folder: train/<class>/* and test/<class>/*;
    class folders alone; or, to pretrain without labels, any folder of images."""
    root: str = field(default="data", metadata=PATH)
    """Folder that holds the data set."""
    download: bool = False
    """Fetch the data set when it is not under root."""
    image_size: int | None = None
    """Side of the square images; default the data set's own."""
    cache: str | None = field(default=None, metadata=PATH)
    """Folder for decoded images; default the user's cache folder (XDG_CACHE_HOME or ~/.cache, in astra_env)."""
    holdout: float | None = None
    """Share of the training images, seeded and class-balanced, that serves as the test split of a data set without one,
    such as 0.1; default none."""
    max_images: int | None = None
    """Use only this many images of the training split (class-balanced when labelled, else the first); default all."""
    device_budget_mib: int = 4096
    """Keep the images on the learner's device when they take at most this many MiB."""
    host_budget_mib: int = 8192
    """Keep the images in memory when they take at most this many MiB, else read them from a memory-mapped file."""


@dataclass
class ViewsConfig:
    """The SimCLR augmentation that makes two views of every image."""

    size: int | None = None
    """Side of a view; default the image's own."""
    crop_scale: tuple[float, float] = (0.1, 1.0)
    """Smallest and largest fraction of the area that a crop keeps."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strength of brightness, contrast, saturation and hue jitter."""
    jitter_probability: ClosedUnitInterval = 0.8
    """How often colours are jittered."""
    grayscale_probability: ClosedUnitInterval = 0.2
    """How often a view turns gray."""
    flip_probability: ClosedUnitInterval = 0.5
    """How often a view is mirrored."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How crops are resized, with antialiasing: bicubic (ASTrA, ACL) or bilinear (DynACL, RoCL, AdvCL)."""
    color_first: bool = False
    """Jitter colours and turn gray before the crop, as RoCL does, instead of after it."""


@dataclass
class TargetConfig:
    """The target network: the encoder that is being made robust."""

    backbone: str = "resnet"
    """resnet; vit: a vision transformer with layer norms, for which blocks, stem and norm mean nothing, and which has a
    head of its own; timm:NAME; or module:function of yours. The function is called with those of num_classes (1),
    normalize (None), width and generator that it names, and returns a torch module that gives embeddings
    (N, embed_dim) of images (N, 3, H, W), by embed(images) or when called, and says embed_dim. Its norms are its own,
    the same for both branches; so functions for network.name of supervised runs serve as well."""
    width: PositiveInt = 64
    """Channels of the first stage; of a token for vit, one attention head per 32."""
    depth: PositiveInt = 6
    """Blocks of a vit."""
    patch_size: PositiveInt = 4
    """Side of a vit's patches in pixels; views must divide into them."""
    blocks: tuple[int, int, int, int] = (2, 2, 2, 2)
    """Residual blocks of the four stages."""
    feature_dim: PositiveInt = 512
    """Length of the projected features."""
    hidden_dim: PositiveInt = 2048
    """Width of the projection head's first layer."""
    head: Literal["mlp3", "mlp2", "mlp2_bn"] = "mlp3"
    """Projection head: mlp3 (linear-norm-ReLU twice, then linear-norm, norms by branch; ASTrA, ACL, DynACL), mlp2
    (linear-ReLU-linear; RoCL) or mlp2_bn (linear-BatchNorm-ReLU-linear to unit length, one BatchNorm for both branches;
    AdvCL)."""
    normalize: Literal["imagenet", "cifar10", "cifar100", "none"] = "imagenet"
    """Channel statistics that inputs in [0, 1] are normalised by: imagenet (ASTrA, ACL, DynACL), cifar10, cifar100 or
    none."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """cifar (3x3, stride 1) or imagenet (7x7, stride 2, max-pool)."""
    norm: Literal["branch", "single", "group"] = "branch"
    """branch (one BatchNorm for clean, one for adversarial views), single or group."""


@dataclass
class StrategyConfig:
    """The grids a policy chooses attacks from; numbers in [0, 1] pixel units or fractions such as 8/255.

    In l2 they are lengths of the whole perturbation and may exceed 1.
    """

    epsilon: list[float | str] = field(default_factory=lambda: [f"{i}/255" for i in range(3, 16)])
    """Radii of the ball of learner.norm."""
    steps: list[int] = field(default_factory=lambda: list(range(3, 15)))
    """Numbers of PGD steps; 0 trains on clean views in place of attacked ones, at no cost of an attack."""
    step_size: list[float | str] = field(default_factory=lambda: [f"{i}/255" for i in range(1, 6)])
    """Lengths of one step, in the unit below."""
    step_size_unit: Literal["pixels", "relative"] = "pixels"
    """pixels, or relative: multiples of epsilon / steps, so that 1 just reaches the edge of the ball."""


@dataclass
class LearnerConfig(SpeedOptions):
    """Adversarial training of the target network.

    Batch size, length, learning rate, momentum, weight decay, norm, reward, precision and what else is about speed are
    every learner's; the other fields are the contrastive one's.
    """

    kind: str = "contrastive"
    """Who trains: contrastive, supervised (a classifier, by the methods of package rpat) or module:Class."""
    kind_args: dict[str, Any] = field(default_factory=dict)
    """Settings of that learner; contrastive has none, supervised takes those of rpat, such as {method: trades}."""
    objective: str = "astra"
    """astra, acl, dynacl, rocl, advcl, deacl, barlow, simclr (clean views only, no attack) or module:Class."""
    objective_args: dict[str, Any] = field(default_factory=dict, metadata=path_keys("teacher", "encoder"))
    """Arguments of the objective."""
    batch_size: int = 512
    """Images per step; each gives two views in contrastive training."""
    drop_last: bool = True
    """Leave out the images of an epoch that do not fill a batch; false trains on them as a smaller last batch."""
    epochs: PositiveInt = 1000
    """Length of the training in epochs."""
    total_steps: PositiveInt | None = None
    """Length of the training in steps; when given, epochs is ignored."""
    budget: PositiveFinite | None = None
    """Length of the training in F per view, F being a forward pass of the target on one view: an attack step costs 2,
    training on clean and attacked views 6, everything else what it does; when given, epochs is ignored and total_steps
    must be null."""
    optimizer: Literal["lars", "sgd"] = "lars"
    """lars or sgd, both with momentum."""
    learning_rate: PositiveFinite = 5.0
    """Highest learning rate: after warm-up (contrastive), of SGD at the start (supervised)."""
    momentum: float = 0.9
    """Momentum of the optimiser."""
    weight_decay: float = 1e-6
    """Weight decay on every parameter."""
    trust_coefficient: float = 1e-3
    """LARS trust coefficient."""
    warmup_epochs: NonNegativeFinite = 10.0
    """Length of the linear warm-up in epochs."""
    final_learning_rate: float = 1e-6
    """Where the cosine ends."""
    schedule: Literal["step", "epoch"] = "step"
    """How often the learning rate changes: step (the warm-up starts at 0) or epoch (constant within an epoch; the
    warm-up starts at 1 / warmup_epochs of the highest)."""
    temperature: PositiveFinite = 0.5
    """Temperature of NT-Xent."""
    norm: str = "linf"
    """Norm of the ball that attacks stay in: linf, l2 or module:Class; also that of the measurement at the end."""
    attack_mode: Literal["eval", "train"] = "eval"
    """Mode of the network under the attack: eval, or train (AdvCL), in which BatchNorms normalise by the batch and
    their running statistics move."""
    mixed_weight: NonNegativeFinite = 0.5
    """Weight w of the mixed loss of astra and barlow."""
    reward: str = "astra"
    """Of damage: astra, per_view, vs_fixed, cost_aware, constant; of the outcome, on held-out images: robust_progress,
    probe_progress, gradient_alignment; or module:attribute. Supervised: adv_loss_gain, look_ahead, constant, the
    outcomes or module:attribute."""
    reward_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the reward."""
    accumulate: PositiveInt = 1
    """Chunks in which a process works off the batch when memory is short; negatives stay global (GradCache)."""


@dataclass
class EnvConfig:
    """The Gymnasium environments."""

    chunk_steps: PositiveInt = 10
    """Minibatches that one action of AttackStrategy-v0 is applied to."""
    reset_mode: Literal["restart", "continue"] = "restart"
    """What a bare reset() does: restart (a fresh learner) or continue (the same learner, next training)."""
    divergence_penalty: Finite = -1.0
    """Reward of the step in which training diverged."""
    autoreset_mode: Literal["same_step", "next_step"] = "same_step"
    """When the vector environment starts the next episode: same_step (with final_obs) or next_step."""


@dataclass
class ProbeConfig:
    """The measurement at the end of a run: a linear probe of an encoder, a classifier as it is."""

    enabled: bool = True
    """Measure when the training is finished."""
    epochs: PositiveInt = 25
    """Epochs of the linear classifier."""
    learning_rate: PositiveFinite = 0.01
    """SGD learning rate of the linear classifier."""
    batch_size: PositiveInt = 512
    """Batch size of the linear classifier."""
    augment: bool = True
    """Crop and flip the training images (features are then extracted every epoch), or probe fixed features."""
    epsilon: list[float | str] = field(default_factory=lambda: ["8/255"])
    """Radii of the PGD attack on the test images, in learner.norm."""
    steps: NonNegativeInt = 20
    """Steps of that attack."""
    step_size: float | str | None = None
    """Length of a step; default the papers' 2/255 (l2: 2.5 * epsilon / steps)."""
    max_test_images: PositiveInt | None = None
    """Attack a seeded sample of this many test images; default all."""


@dataclass
class RunConfig(RunOptions):
    """What a run writes, and how often."""

    image_every: NonNegativeInt = 0
    """Steps between image grids in TensorBoard; 0 for only the last step."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints."""


@dataclass
class ExperimentConfig:
    """Everything a run under a policy's attacks depends on."""

    renamed: ClassVar[Mapping[str, str]] = {"learner.kind_args.norm": "learner.norm"}
    """Keys of version 0.1.0 and what they are called now."""

    seed: int = 3407
    """Seed of every generator of the run."""
    device: str = "auto"
    """cpu, cuda, cuda:N or auto."""
    policy: str = "reinforce"
    """Who chooses the attacks: fixed, random, scheduled, reinforce, module:Class, or the path of a run or checkpoint
    whose trained strategy network acts (policy_args {learn: true}: and goes on learning)."""
    policy_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the policy."""
    data: DataConfig = field(default_factory=DataConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def validate(self) -> None:
        """Raise ConfigError naming the first field whose value cannot be used."""
        learner = self.learner
        if learner.kind != "contrastive":
            at_least("learner.batch_size", learner.batch_size, 2)
        elif learner.batch_size < 4 or learner.batch_size % 2:
            raise ConfigError(f"learner.batch_size: expected an even integer >= 4, got {learner.batch_size}")
        elif learner.kind_args:
            raise ConfigError(
                f"learner.kind_args: contrastive takes none, got {', '.join(map(str, learner.kind_args))}"
            )
        if learner.budget is not None and learner.total_steps is not None:
            raise ConfigError(
                f"learner.budget: {learner.budget:g} F beside learner.total_steps {learner.total_steps} gives the "
                "training two lengths; set one of them to null"
            )
        if ":" not in self.target.backbone:
            one_of("target.backbone", self.target.backbone, ("resnet", "vit", "timm:NAME", "module:function"))
        if learner.fold_batchnorm and self.target.backbone != "resnet":
            raise ConfigError(
                f"learner.fold_batchnorm: only target.backbone 'resnet' can be folded, got {self.target.backbone!r}; "
                "switch it off"
            )
        if learner.fold_batchnorm and self.target.norm == "group":
            raise ConfigError("learner.fold_batchnorm: needs target.norm branch or single, got 'group'")
        require_compilable("learner", learner)
        if self.target.backbone == "vit" and self.target.head != "mlp3":
            raise ConfigError(f"target.head: target.backbone 'vit' has a head of its own, got {self.target.head!r}")
        if learner.attack_mode == "train":
            require_attackable_in_training_mode(learner)
        low, high = self.views.crop_scale
        if not 0 < low <= high <= 1:
            raise ConfigError(f"views.crop_scale: expected 0 < low <= high <= 1, got {list(self.views.crop_scale)}")
