"""RoCL: one view is attacked against the other (Kim et al. 2020)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from astra_env.attacks import Contrastive, Objective
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
    """NT-Xent over {t1, t2, adv} + (1/256) * NT-Xent(adv, t2); published attack .0314, 7 steps of .007.

    Only the first view of a pair is attacked; the second keeps zero steps and zero radius whatever a policy chooses
    for it. As published, keys (the second factor of every cosine) are constants in the gradients of both losses and of
    the attack, and the second loss has a pass of its own, before the other. All views go through the adv branch, for
    RoCL knows a single set of norms (``target.norm: single``). The authors project to the box and then to the ball, we
    the other way round, which is the same for l-inf. In preset rocl the learning rate is up to .09 of 1.5 below theirs
    in the warm-up, and within .012 of it afterwards. On the authors' two GPUs the attack and the second loss see the
    negatives of 256 images, here of all 512: on digits that attack raises NT-Xent by .255, ours by .256.
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

    def attack_goal(self, batch: Batch) -> Objective:
        """Return NT-Xent of the pairs, with keys that are constants."""
        return Contrastive(self.temperature, detach_keys=True)

    def __call__(self, encode: Encoder, batch: Batch, adversarial: Tensor) -> Losses:
        """Return the losses of clean views and attacked first views."""
        first, second, attacked = batch.views[0::2], batch.views[1::2], adversarial[0::2]
        pair = encode(torch.cat((attacked, second)), "adv").unflatten(0, (2, -1))
        regularizer = nt_xent(interleave(pair[0], pair[1]), self.temperature, detach_keys=True)
        features = encode(torch.cat((first, second, attacked)), "adv").unflatten(0, (3, -1)).transpose(0, 1)
        contrastive = multi_view_nt_xent(features, self.temperature, positives="sum", detach_keys=True)
        total = contrastive + self.options.regularization * regularizer
        return Losses(total, {"contrastive_loss": contrastive, "adv_loss": regularizer})
