"""What an attack maximises: functions of the network's outputs on the whole batch."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch.nn.functional as F
from torch import Tensor

from astra_env.losses import nt_xent


class Objective(Protocol):
    """A scalar to maximise.

    ``joint`` says whether one row's gradient depends on the other rows' outputs, so that finished rows must keep
    their features in view of the ones still moving.
    """

    joint: ClassVar[bool]

    def __call__(self, outputs: Tensor) -> Tensor:
        """Map outputs (N, D), in the batch's order, to a scalar."""


@dataclass(frozen=True)
class Contrastive:
    """NT-Xent of the batch: pushes the two views of an image apart (ACL, ASTrA; with constant keys RoCL)."""

    temperature: float = 0.5
    detach_keys: bool = False
    joint: ClassVar[bool] = True

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return NT-Xent of features (2B, D)."""
        return nt_xent(outputs, self.temperature, detach_keys=self.detach_keys)


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """Cross-entropy against labels (N,) of int64 classes or (N, C) probabilities (Madry et al. 2018)."""

    labels: Tensor
    joint: ClassVar[bool] = False

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return the summed cross-entropy of logits (N, C)."""
        return F.cross_entropy(outputs, self.labels, reduction="sum")


@dataclass(frozen=True, eq=False)
class KLDivergence:
    """KL(p(clean) || p(attacked)) from fixed clean logits (N, C) (TRADES, Zhang et al. 2019)."""

    clean_logits: Tensor
    joint: ClassVar[bool] = False

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return the summed divergence of logits (N, C)."""
        return F.kl_div(outputs.log_softmax(1), self.clean_logits.softmax(1), reduction="sum")


@dataclass(frozen=True, eq=False)
class Margin:
    """The Carlini-Wagner margin: the best wrong logit minus the right one; labels (N,)."""

    labels: Tensor
    joint: ClassVar[bool] = False

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return the summed margin of logits (N, C)."""
        right = outputs.gather(1, self.labels[:, None])
        wrong = outputs.scatter(1, self.labels[:, None], float("-inf")).amax(1)
        return (wrong - right[:, 0]).sum()
