"""ACL: adversarial contrastive learning, dual stream (Jiang et al. 2020)."""

from typing import ClassVar

from torch import Tensor

from astra_env.losses import alignment, nt_xent, uniformity
from astra_env.objectives.base import OBJECTIVES, Batch, Encoder, Losses, TrainingObjective


@OBJECTIVES.register("acl")
class ACL(TrainingObjective):
    """(NT-Xent(clean) + NT-Xent(adv)) / 2; published with the fixed attack 8/255 in 5 steps of 2/255.

    The start of the attack is not clipped to the image box, and the last, incomplete batch of an epoch is trained on
    (``learner.drop_last: false`` in preset acl). The authors' learning rate is one step ahead of ours in the warm-up:
    .1 % of its height.
    """

    clip_start: ClassVar[bool] = False
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
