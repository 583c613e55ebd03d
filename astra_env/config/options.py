"""Options that every kind of training has, under the same names and in the same units."""

from dataclasses import dataclass

from astra_env.config.checks import at_least, one_of, positive, require_compilable


@dataclass
class SpeedOptions:
    """How a learner of either kind computes: a part of its section ``learner``."""

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
    sync_bn: bool = False
    """Of several processes on CUDA: normalise by the whole batch (SyncBatchNorm); else each by its own rows."""

    def validate(self) -> None:
        """Raise ConfigError naming the first of these fields whose value cannot be used."""
        one_of("learner.precision", self.precision, ("fp32", "bf16"))
        require_compilable("learner", self)


@dataclass
class RunOptions:
    """What every training run has: how often it writes, and what keeps it safe."""

    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; default once an epoch."""
    keep_every: int = 0
    """Steps between checkpoints that are kept for good; 0 to keep only the last ones."""
    timeout_seconds: float = 600.0
    """Of several processes: how long each waits for the others before it ends with an error."""
    on_divergence: str = "raise"
    """raise, or rollback: restore the last checkpoint and continue at half the learning rate."""
    threads: int | None = None
    """CPU threads; default PyTorch's own choice."""
    deterministic: bool = False
    """Use deterministic kernels only; matters on CUDA, where others are faster (on the CPU a run repeats anyway)."""

    def validate(self) -> None:
        """Raise ConfigError naming the first of these fields whose value cannot be used."""
        at_least("run.log_every", self.log_every, 1)
        if self.checkpoint_every is not None:
            at_least("run.checkpoint_every", self.checkpoint_every, 1)
        at_least("run.keep_every", self.keep_every, 0)
        positive("run.timeout_seconds", self.timeout_seconds)
        one_of("run.on_divergence", self.on_divergence, ("raise", "rollback"))
