"""Consistency-AT (Tack et al. 2022)."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from astra_env.errors import ConfigError
from rpat.losses import jensen_shannon
from rpat.methods.base import METHODS, Defaults, Method, Step, require_at_least


@METHODS.register("consistency")
class Consistency(Method):
    """Two attacked augmentations of an image must give one prediction.

    The attack is that of :class:`rpat.methods.pgd_at.PGDAT`, whose note on l-2 holds here too. The release has one
    weight for the divergence and for robust perception; here ``weight`` is the divergence's alone.

    Args:
        weight: of the Jensen-Shannon divergence.
        temperature: of the predictions it compares.
        views: augmented views of an image; two, the divergence is between a pair.
    """

    views: ClassVar[int] = 2
    hard_labels: ClassVar[bool] = True
    defaults: ClassVar[Defaults] = Defaults(epochs=200, autoaugment="second_half")

    def __init__(self, weight: float = 1.0, temperature: float = 0.5, views: int = 2) -> None:
        self.weight = require_at_least("weight", weight, 0)
        self.temperature = require_at_least("temperature", temperature, 1e-6)
        if views != self.views:
            raise ConfigError(
                f"method_args.views: consistency compares 2 views of every image, got {views}; "
                "set it to 2, or choose --method pgd_at for a single view"
            )

    def loss(self, step: Step) -> dict[str, Tensor]:
        """CE over both views + weight * JS_T(z(x'_1), z(x'_2))."""
        first, second = step.adv_logits.chunk(2)
        return {
            "cross_entropy": F.cross_entropy(step.adv_logits, step.labels),
            "consistency": self.weight * jensen_shannon(first, second, self.temperature),
        }
