"""Training objectives: what the target network minimises on clean and adversarial views."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from astra_env.config import LearnerConfig
from astra_env.losses import alignment, mixed_nt_xent, nt_xent, uniformity
from astra_env.registry import Registry

Encode = Callable[[Tensor, str], Tensor]
"""Maps views (N, 3, H, W) and a branch to features (N, D) in training mode."""


@dataclass(frozen=True)
class Losses:
    """The scalar to minimise and the named scalars worth watching, all on the device."""

    total: Tensor
    terms: dict[str, Tensor]


class TrainingObjective(Protocol):
    """A self-supervised loss: whether it needs adversarial views (``attacked``) and which branch to evaluate."""

    attacked: ClassVar[bool]
    branch: ClassVar[str]

    def __call__(self, encode: Encode, views: Tensor, adversarial: Tensor) -> Losses:
        """Return the losses of one batch of paired views (2B, 3, H, W)."""


OBJECTIVES: Registry[Callable[[LearnerConfig], TrainingObjective]] = Registry("learner.objective")


@OBJECTIVES.register("astra")
class Astra:
    """ASTrA's loss: (NT-Xent(clean) + NT-Xent(adv)) / 2 + w * NT-Xent of (clean_i, adv_i) pairs (2025, section 3)."""

    attacked: ClassVar[bool] = True
    branch: ClassVar[str] = "adv"

    def __init__(self, config: LearnerConfig) -> None:
        self.temperature = config.temperature
        self.mixed_weight = config.mixed_weight

    def __call__(self, encode: Encode, views: Tensor, adversarial: Tensor) -> Losses:
        """Return the losses; clean views go through the clean branch, adversarial ones through the other."""
        clean, adv = encode(views, "clean"), encode(adversarial, "adv")
        clean_loss, adv_loss = nt_xent(clean, self.temperature), nt_xent(adv, self.temperature)
        mixed_loss = mixed_nt_xent(clean, adv, self.temperature)
        total = (clean_loss + adv_loss) / 2 + self.mixed_weight * mixed_loss
        clean, adv = clean.detach(), adv.detach()
        terms = {
            "clean_loss": clean_loss,
            "adv_loss": adv_loss,
            "mixed_loss": mixed_loss,
            "alignment": alignment(clean, adv),
            "uniformity": uniformity(clean),
        }
        return Losses(total, terms)


@OBJECTIVES.register("simclr")
class SimCLR:
    """NT-Xent of the clean views alone (Chen et al. 2020): the baseline without an attack."""

    attacked: ClassVar[bool] = False
    branch: ClassVar[str] = "clean"

    def __init__(self, config: LearnerConfig) -> None:
        self.temperature = config.temperature

    def __call__(self, encode: Encode, views: Tensor, adversarial: Tensor) -> Losses:
        """Return the loss of the clean views; ``adversarial`` is not looked at."""
        clean = encode(views, "clean")
        loss = nt_xent(clean, self.temperature)
        return Losses(loss, {"clean_loss": loss, "uniformity": uniformity(clean.detach())})
