"""Barlow Twins under attack: a non-contrastive objective, to show that nothing depends on negatives."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from astra_env.attacks import Objective
from astra_env.errors import ConfigError
from astra_env.losses import alignment, barlow_twins, uniformity
from astra_env.objectives.base import OBJECTIVES, Batch, Encoder, Losses, Setting, TrainingObjective


@dataclass
class BarlowOptions:
    """``learner.objective_args`` of barlow."""

    redundancy: float = 0.005
    """Weight of the correlations between different features."""


@dataclass(frozen=True)
class Decorrelate:
    """What the attack raises: Barlow Twins' loss of the two views of every image."""

    redundancy: float
    joint: ClassVar[bool] = True

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return the loss of features (2B, D); rows 2k and 2k+1 are a pair."""
        return barlow_twins(outputs[0::2], outputs[1::2], self.redundancy)


@OBJECTIVES.register("barlow")
class Barlow(TrainingObjective):
    """ASTrA's loss with Barlow Twins' in place of NT-Xent: (L(clean) + L(adv)) / 2 + w * L(clean_i, adv_i).

    The attack raises the same loss. Rewards stay NT-Xent gains of the features: a measure of how far the attack
    drives the views of an image apart, whatever loss is trained.
    """

    Options: ClassVar[type] = BarlowOptions

    def __init__(self, setting: Setting, options: Any) -> None:
        super().__init__(setting, options)
        if not 0 <= options.redundancy < float("inf"):
            raise ConfigError(
                f"learner.objective_args.redundancy: expected a finite number >= 0, got {options.redundancy}"
            )

    def attack_goal(self, batch: Batch) -> Objective:
        """Return Barlow Twins' loss of the pairs."""
        return Decorrelate(self.options.redundancy)

    def __call__(self, encode: Encoder, batch: Batch, adversarial: Tensor) -> Losses:
        """Return the losses; clean views go through the clean branch, adversarial ones through the other."""
        clean, adv = encode(batch.views, "clean"), encode(adversarial, "adv")
        redundancy = self.options.redundancy
        clean_loss = barlow_twins(clean[0::2], clean[1::2], redundancy)
        adv_loss = barlow_twins(adv[0::2], adv[1::2], redundancy)
        mixed_loss = barlow_twins(clean, adv, redundancy)
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
