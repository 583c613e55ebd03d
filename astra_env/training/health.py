"""Signs that a run trains on nothing: reported once, in the log, where somebody reads them."""

import logging
from collections.abc import Mapping

import torch
from torch import nn

from astra_env.errors import Diverged

logger = logging.getLogger(__name__)

ZERO_GRADIENT_LIMIT = 0.5
"""Share of attacked images without any gradient from which on the attack is called broken."""
CONSTANT_UNIFORMITY = -1e-3
"""Uniformity, ``log mean exp(-2 d^2)``, of features that practically coincide: distances below 0.023."""


def require_finite(network: nn.Module, step: int) -> None:
    """Raise Diverged unless every weight and statistic is finite: what is saved must be worth coming back to."""
    norms = torch._foreach_norm([value for value in network.state_dict().values() if value.is_floating_point()])
    if not bool(torch.isfinite(torch.stack([norm.float() for norm in norms])).all()):
        raise Diverged(
            f"training diverged before step {step}: weights are not finite; lower the learning rate, or set "
            "run.on_divergence to rollback"
        )


class HealthWatch:
    """Warns once of each sign, whatever number of steps shows it."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def look(self, step: int, scalars: Mapping[str, float]) -> None:
        """Look at the scalars of one step: ``zero_gradient_share``, ``uniformity`` and ``logit_spread`` where given."""
        share = scalars.get("zero_gradient_share", 0.0)
        if share > ZERO_GRADIENT_LIMIT:
            self._tell(
                "gradient",
                f"step {step}: {100 * share:.0f} % of the attacked images have no gradient, so the attack does not "
                "move them; is the loss saturated, or the network's output constant?",
            )
        if _constant(scalars):
            self._tell(
                "constant",
                f"step {step}: the network gives practically the same output for every image; it learns nothing like "
                "this: lower the learning rate, or check the images",
            )

    def _tell(self, sign: str, message: str) -> None:
        if sign not in self._told:
            self._told.add(sign)
            logger.warning("%s", message)


def _constant(scalars: Mapping[str, float]) -> bool:
    """Whether the outputs hardly differ; an untrained classifier's logits nearly coincide, so only equal ones count."""
    if "logit_spread" in scalars:
        return scalars["logit_spread"] <= 0
    return scalars.get("uniformity", -1.0) > CONSTANT_UNIFORMITY
