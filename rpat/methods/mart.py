"""MART (Wang et al. 2020)."""

from typing import ClassVar

from torch import Tensor

from rpat.losses import mart_loss
from rpat.methods.base import METHODS, Method, Step, near_start, require_at_least


@METHODS.register("mart")
class MART(Method):
    """Boosted cross-entropy plus ``beta`` times a divergence weighted by how wrong the clean prediction is."""

    hard_labels: ClassVar[bool] = True

    def __init__(self, beta: float = 6.0) -> None:
        self.beta = require_at_least("beta", beta, 0)

    def attack(self, step: Step) -> Tensor:
        """Ascend the cross-entropy from near x, outside the image box too."""
        return self.pgd(step, start=near_start(step), clip_start=False)

    def loss(self, step: Step) -> dict[str, Tensor]:
        """BCE(z(x'), y) + beta * mean[KL(p(x) || p(x')) * (1 - p_y(x))]."""
        # The official code runs the clean images first, which orders the updates of BatchNorm's running statistics.
        clean = step.clean_logits
        boosted, divergence = mart_loss(step.adv_logits, clean, step.labels)
        return {"boosted_cross_entropy": boosted, "divergence": self.beta * divergence}
