"""Options that every kind of training has, under the same names and in the same units."""

from dataclasses import dataclass
from typing import Literal

from astra_env.config.checks import CompileMode
from astra_env.config.types import NonNegativeInt, PositiveFinite, PositiveInt


@dataclass
class SpeedOptions:
    """How a learner of either kind computes: a part of its section ``learner``."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32, or bf16 for autocast with float32 losses and perturbations."""
    channels_last: bool = False
    """Keep the network and the images in channels-last memory order; not on a CPU if narrower than 16."""
    fold_batchnorm: bool = False
    """Attack a copy of the network whose BatchNorms are folded into its weights: equal up to rounding, faster."""
    compile: CompileMode = "none"
    """torch.compile mode of that copy: none, default, reduce-overhead (CUDA graphs) or max-autotune."""
    tf32: bool | None = None
    """Allow or forbid TF32 products on CUDA; default PyTorch's own choice."""
    fast: bool = False
    """Use what pays on the device: bf16 where it has instructions for it, channels_last, fold_batchnorm, tf32."""
    sync_bn: bool = False
    """Of several processes on CUDA: normalise by the whole batch (SyncBatchNorm); else each by its own rows."""


@dataclass
class RunOptions:
    """What every training run has: how often it writes, and what keeps it safe."""

    log_every: PositiveInt = 10
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: PositiveInt | None = None
    """Steps between checkpoints; default once an epoch."""
    keep_every: NonNegativeInt = 0
    """Steps between checkpoints that are kept for good; 0 to keep only the last ones."""
    timeout_seconds: PositiveFinite = 600.0
    """Of several processes: how long each waits for the others before it ends with an error."""
    on_divergence: Literal["raise", "rollback"] = "raise"
    """raise, or rollback: restore the last checkpoint and continue at half the learning rate."""
    threads: PositiveInt | None = None
    """CPU threads, in environments too; default the process's own number, which may round otherwise."""
    deterministic: bool = False
    """Use deterministic kernels only; matters on CUDA, where others are faster (on the CPU a run repeats anyway)."""
