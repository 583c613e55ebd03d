"""TRADES (Zhang et al. 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from astra_env.attacks import KLDivergence, frozen
from rpat.losses import trades_kl
from rpat.methods.base import METHODS, Method, Step, near_start, require_at_least


@METHODS.register("trades")
class TRADES(Method):
    """Cross-entropy of clean images plus ``beta`` times the divergence between clean and adversarial predictions.

    As in RPAT's benchmarks, whose l-2 attack takes steps of ``step_size`` and projects to the ball, then to the box;
    the authors' own takes steps of ``2 * epsilon / steps`` and projects to the box first.
    """

    def __init__(self, beta: float = 6.0) -> None:
        self.beta = require_at_least("beta", beta, 0)

    def attack(self, step: Step) -> Tensor:
        """Ascend KL(p(x) || p(x')) from near x, outside the image box too; the clean prediction is fixed, eval mode."""
        with frozen(step.model), torch.no_grad():
            clean = step.forward(step.model, step.images)
        return self.pgd(step, start=near_start(step), objective=KLDivergence(clean), clip_start=False)

    def loss(self, step: Step) -> dict[str, Tensor]:
        """CE(z(x), y) + beta * KL(p(x) || p(x'))."""
        terms = {
            "cross_entropy": F.cross_entropy(step.clean_logits, step.labels),
            "divergence": self.beta * trades_kl(step.adv_logits, step.clean_logits),
        }
        # The released code forwards x once more for the divergence: the same logits in training mode, but BatchNorm's
        # running statistics move twice. One pass without gradient does as much.
        step.move_statistics(step.images)
        return terms
