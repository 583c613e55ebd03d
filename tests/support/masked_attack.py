"""The plain attack that the engine must equal: the whole batch in every iteration, a mask for images that are done."""

from collections.abc import Callable

import torch
from torch import Tensor

from astra_env.strategy import AttackStrategy


def masked_attack(
    loss: Callable[[Tensor], Tensor], images: Tensor, strategy: AttackStrategy, start: Tensor, norm: str = "linf"
) -> Tensor:
    """Climb ``loss`` (of all images -> scalar) from ``start``, clipped to the image box; returns adversarial images."""
    epsilon, step_size = (column.view(-1, 1, 1, 1).to(images) for column in (strategy.epsilon, strategy.step_size))
    delta = (images + start).clamp(0, 1) - images
    for iteration in range(int(strategy.steps.max())):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(images + delta), delta)
        moving = (strategy.steps > iteration).view(-1, 1, 1, 1)
        if norm == "linf":
            moved = torch.maximum(torch.minimum(delta + step_size * gradient.sign(), epsilon), -epsilon)
        else:
            moved = delta + step_size * gradient / _length(gradient).clamp_min(1e-12)
            moved = moved * (epsilon / _length(moved).clamp_min(1e-12)).clamp_max(1)
        moved = (images + moved).clamp(0, 1) - images
        delta = torch.where(moving, moved, delta).detach()
    return (images + delta).clamp(0, 1)


def _length(values: Tensor) -> Tensor:
    return values.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
