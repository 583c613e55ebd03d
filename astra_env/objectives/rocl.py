"""RoCL: one view is attacked against the other (Kim et al. 2020)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from astra_env.errors import ConfigError
from astra_env.losses import interleave, multi_view_nt_xent, nt_xent
from astra_env.objectives.base import OBJECTIVES, Batch, Encoder, Losses, Setting, TrainingObjective
from astra_env.strategy import AttackStrategy


@dataclass
class RoCLOptions:
    """``learner.objective_args`` of rocl."""

    regularization: float = 1 / 256
    """Weight of NT-Xent between the attacked view and the other one."""


@OBJECTIVES.register("rocl")
class RoCL(TrainingObjective):
    """NT-Xent over {t1, t2, adv} + (1/256) * NT-Xent(adv, t2); published attack 8/255, 7 steps of .007.

    Only the first view of a pair is attacked; the second keeps zero steps and zero radius whatever a policy chooses
    for it. All views go through the adv branch, for RoCL knows a single set of norms (``target.norm: single`` is
    the published network). Both losses use the features of one pass over 3B views; the authors' code makes another
    pass for the second and holds the keys fixed in the gradient of the first, which the formula does not.
    """

    clean_branch: ClassVar[str] = "adv"
    Options: ClassVar[type] = RoCLOptions

    def __init__(self, setting: Setting, options: Any) -> None:
        super().__init__(setting, options)
        if not 0 <= options.regularization < float("inf"):
            raise ConfigError(
                f"learner.objective_args.regularization: expected a finite number >= 0, got {options.regularization}"
            )

    def budgets(self, strategy: AttackStrategy) -> AttackStrategy:
        """Return the chosen attacks of the first views, and none for the second."""
        first = torch.arange(len(strategy), device=strategy.steps.device) % 2 == 0
        return AttackStrategy(strategy.epsilon * first, strategy.steps * first, strategy.step_size)

    def __call__(self, encode: Encoder, batch: Batch, adversarial: Tensor) -> Losses:
        """Return the losses of clean views and attacked first views."""
        first, second = batch.views[0::2], batch.views[1::2]
        features = encode(torch.cat((first, second, adversarial[0::2])), "adv").unflatten(0, (3, -1))
        contrastive = multi_view_nt_xent(features.transpose(0, 1), self.temperature, positives="sum")
        regularizer = nt_xent(interleave(features[2], features[1]), self.temperature)
        total = contrastive + self.options.regularization * regularizer
        return Losses(total, {"contrastive_loss": contrastive, "adv_loss": regularizer})
