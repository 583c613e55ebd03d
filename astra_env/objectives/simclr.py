"""SimCLR: contrastive learning without an attack (Chen et al. 2020)."""

from typing import ClassVar

from torch import Tensor

from astra_env.losses import nt_xent, uniformity
from astra_env.objectives.base import OBJECTIVES, Batch, Encoder, Losses, TrainingObjective


@OBJECTIVES.register("simclr")
class SimCLR(TrainingObjective):
    """NT-Xent of the clean views alone: the baseline without an attack."""

    attacked: ClassVar[bool] = False
    branch: ClassVar[str] = "clean"
    spread: ClassVar[bool] = True

    def __call__(self, encode: Encoder, batch: Batch, adversarial: Tensor) -> Losses:
        """Return the loss of the clean views; ``adversarial`` is not looked at."""
        clean = encode(batch.views, "clean")
        loss = nt_xent(clean, self.temperature)
        return Losses(loss, {"clean_loss": loss, "uniformity": uniformity(clean.detach())})
