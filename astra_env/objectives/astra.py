"""ASTrA: adversarial contrastive learning with a mixed loss (2025, section 3)."""

from typing import ClassVar

from torch import Tensor

from astra_env.losses import alignment, mixed_nt_xent, nt_xent, uniformity
from astra_env.objectives.base import OBJECTIVES, Batch, Encoder, Losses, TrainingObjective


@OBJECTIVES.register("astra")
class Astra(TrainingObjective):
    """(NT-Xent(clean) + NT-Xent(adv)) / 2 + w * NT-Xent of (clean_i, adv_i) pairs, with w ``learner.mixed_weight``."""

    spread: ClassVar[bool] = True

    def __call__(self, encode: Encoder, batch: Batch, adversarial: Tensor) -> Losses:
        """Return the losses; clean views go through the clean branch, adversarial ones through the other."""
        clean, adv = encode(batch.views, "clean"), encode(adversarial, "adv")
        clean_loss, adv_loss = nt_xent(clean, self.temperature), nt_xent(adv, self.temperature)
        mixed_loss = mixed_nt_xent(clean, adv, self.temperature)
        total = (clean_loss + adv_loss) / 2 + self.setting.config.learner.mixed_weight * mixed_loss
        clean, adv = clean.detach(), adv.detach()
        terms = {
            "clean_loss": clean_loss,
            "adv_loss": adv_loss,
            "mixed_loss": mixed_loss,
            "alignment": alignment(clean, adv),
            "uniformity": uniformity(clean),
        }
        return Losses(total, terms)
