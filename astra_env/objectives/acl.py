"""ACL: adversarial contrastive learning, dual stream (Jiang et al. 2020)."""

from typing import ClassVar

from torch import Tensor

from astra_env.losses import alignment, nt_xent, uniformity
from astra_env.objectives.base import OBJECTIVES, Batch, Encoder, Losses, TrainingObjective


@OBJECTIVES.register("acl")
class ACL(TrainingObjective):
    """(NT-Xent(clean) + NT-Xent(adv)) / 2; published with the fixed attack 8/255 in 5 steps of 2/255."""

    spread: ClassVar[bool] = True

    def __call__(self, encode: Encoder, batch: Batch, adversarial: Tensor) -> Losses:
        """Return the losses; clean views go through the clean branch, adversarial ones through the other."""
        clean, adv = encode(batch.views, "clean"), encode(adversarial, "adv")
        clean_loss, adv_loss = nt_xent(clean, self.temperature), nt_xent(adv, self.temperature)
        clean, adv = clean.detach(), adv.detach()
        terms = {
            "clean_loss": clean_loss,
            "adv_loss": adv_loss,
            "alignment": alignment(clean, adv),
            "uniformity": uniformity(clean),
        }
        return Losses((clean_loss + adv_loss) / 2, terms)
