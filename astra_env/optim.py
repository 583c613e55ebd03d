"""The optimiser and the learning-rate schedule of self-supervised pretraining."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from astra_env.config.schema import LearnerConfig

ZERO_NORM = 1e-15
"""A tensor whose weights or gradient are shorter than this is not scaled: its local rate is 1."""


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017) as self-supervised adversarial training uses it.

    Per parameter tensor, with gradient g and weights w: ``local = trust * |w| / (|g| + weight_decay * |w|)``, but 1
    where |w| or |g| is below 1e-15; ``buffer = momentum * buffer + lr * local * (g + weight_decay * w)``,
    ``w -= buffer``. Every tensor is scaled and decayed, normalisation and biases included. A tensor that starts at
    zero, as the biases of norms do, therefore takes its first step at the learning rate itself (ASTrA, ACL, DynACL).

    The update works on lists of tensors and never waits for the device.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        momentum: momentum factor.
        weight_decay: weight decay factor.
        trust_coefficient: the trust coefficient.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust_coefficient: float = 1e-3,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient; returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        decay = group["weight_decay"]
        weight_norms = torch.stack(torch._foreach_norm(parameters))
        gradient_norms = torch.stack(torch._foreach_norm(gradients))
        ratio = weight_norms / (gradient_norms + decay * weight_norms)
        scaled = (weight_norms >= ZERO_NORM) & (gradient_norms >= ZERO_NORM)
        rates = list((group["lr"] * torch.where(scaled, group["trust_coefficient"] * ratio, 1.0)).unbind())
        updates = torch._foreach_add(gradients, parameters, alpha=decay)
        torch._foreach_mul_(updates, rates)
        buffers = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in parameters]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates)
        torch._foreach_sub_(parameters, buffers)


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, final_factor: float) -> float:
    """Return the learning-rate factor of one step: linear warm-up from 0 to 1, then half a cosine to ``final_factor``.

    Args:
        step: 0-based step; beyond ``total_steps`` the factor stays final.
        total_steps: length of the training.
        warmup_steps: length of the warm-up; 0 for none.
        final_factor: the factor reached at ``total_steps``.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return half_cosine((step - warmup_steps) / max(1, total_steps - warmup_steps), final_factor)


def epochwise_warmup_cosine(epoch: int, epochs: float, warmup_epochs: float, final_factor: float) -> float:
    """Return the learning-rate factor of one whole epoch: linear warm-up that ends at 1, then half a cosine (DynACL).

    Args:
        epoch: 0-based epoch; with a warm-up of 10 epochs, the factors of the first are .1, .2, ..., 1, 1.
        epochs: length of the training.
        warmup_epochs: length of the warm-up; 0 for none.
        final_factor: the factor that the cosine approaches at ``epochs``.
    """
    if epoch < warmup_epochs:
        return min(1.0, (epoch + 1) / warmup_epochs)
    return half_cosine((epoch - warmup_epochs) / max(1, epochs - warmup_epochs), final_factor)


def half_cosine(progress: float, final_factor: float) -> float:
    """Return the learning-rate factor at a share of the training: from 1 along half a cosine to ``final_factor``."""
    return final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_optimizer(config: LearnerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimiser of a configuration."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )
    return LARS(
        parameters,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        trust_coefficient=config.trust_coefficient,
    )
