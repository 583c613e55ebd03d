"""ReBAT (Wang et al. 2023) and, with robust perception, RPAT++ (2025)."""

from dataclasses import replace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from astra_env.errors import ConfigError
from astra_env.strategy import check_pixel_units, parse_number
from rpat.losses import rebat_kl, rpat_plus_plus_loss
from rpat.methods.base import Budget, Defaults, Method, Progress, Step, require_at_least
from rpat.methods.registry import METHODS
from rpat.schedules import relative_milestones

SCHEDULES = ("constant", "piecewise", "dependent")


@METHODS.register("rebat")
class ReBAT(Method):
    """PGD-AT pulled towards the exponential average of its own weights, once that average has started.

    Robust perception *replaces* the pull by its own (RPAT++), instead of adding to it.

    Args:
        weight: of the pull.
        schedule: "constant"; "piecewise", ``weight_factor`` times more from the last milestone on; "dependent",
            ``weight * (1 / relative learning rate - 1) / 2``, which grows as the learning rate falls.
        weight_factor: of the piecewise schedule.
        stronger_attack: train against ``stronger_epsilon`` and ``stronger_steps`` from the first milestone on.
        stronger_epsilon: radius, a number in [0, 1] pixel units (l-2: a length) or a fraction.
        stronger_steps: number of steps.
    """

    needs_average: ClassVar[bool] = True
    defaults: ClassVar[Defaults] = Defaults(
        epochs=200,
        milestones=relative_milestones,
        factor=1 / 1.5,
        padding_mode="reflect",
        normalize="data",
        average=True,
    )

    def __init__(
        self,
        weight: float = 1.0,
        schedule: str = "constant",
        weight_factor: float = 1.5,
        stronger_attack: bool = False,
        stronger_epsilon: Any = "10/255",
        stronger_steps: int = 12,
    ) -> None:
        if schedule not in SCHEDULES:
            raise ConfigError(
                f"method_args.schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}; choose one"
            )
        self.weight = require_at_least("weight", weight, 0)
        self.schedule = schedule
        self.weight_factor = require_at_least("weight_factor", weight_factor, 0)
        self.stronger_attack = stronger_attack
        self.stronger_epsilon = parse_number("method_args.stronger_epsilon", stronger_epsilon)
        self.stronger_steps = int(require_at_least("stronger_steps", stronger_steps, 1))

    def budget(self, budget: Budget, progress: Progress) -> Budget:
        """Return the stronger attack once the learning rate has fallen for the first time."""
        if not self.stronger_attack or progress.epoch < min(progress.milestones, default=progress.epochs):
            return budget
        if budget.norm == "linf":
            check_pixel_units("method_args.stronger_epsilon", self.stronger_epsilon)
        return replace(budget, epsilon=self.stronger_epsilon, steps=self.stronger_steps)

    def terms(self, step: Step) -> dict[str, Tensor]:
        """CE(z(x'), y) + weight * (the pull of ReBAT, or with robust perception that of RPAT++)."""
        terms = {"cross_entropy": F.cross_entropy(step.adv_logits, step.labels)}
        if step.average is None:
            return terms
        weight = self.pull(step.progress)
        if step.perception is None:
            distance = rebat_kl(step.adv_logits, step.average_logits(step.adversarial))
            return {**terms, "bootstrap": weight * distance}
        distance = rpat_plus_plus_loss(
            step.adv_logits,
            step.average_logits(step.mixed),
            step.average_logits(step.images),
            step.perception.rate,
        )
        return {**terms, "robust_perception": weight * step.perception.weight * distance}

    def pull(self, progress: Progress) -> float:
        """Return the weight of the pull at this point of the run."""
        if self.schedule == "dependent":
            return self.weight * (1 / progress.learning_rate - 1) / 2
        late = progress.epoch >= max(progress.milestones, default=progress.epochs)
        return self.weight * (self.weight_factor if self.schedule == "piecewise" and late else 1)
