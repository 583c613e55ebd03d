"""An attack on a network in training mode, as ReBAT, RPAT++ and LAS-AT's look-ahead were released with."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from astra_env.attacks import AttackResult, CrossEntropy, frozen, get_norm
from astra_env.distributed import ALONE, World
from astra_env.errors import ConfigError
from astra_env.strategy import AttackStrategy

ATTACK_MODES = ("eval", "train")


def training_mode_attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    strategy: AttackStrategy,
    start: Tensor,
    *,
    norm: str = "linf",
    early_stop: bool = False,
    forward: Callable[[Tensor], Tensor] | None = None,
    world: World = ALONE,
) -> AttackResult:
    """Ascend the cross-entropy of a network whose BatchNorms use and move the statistics of the batch.

    The images of a batch depend on each other then, so that all of them are forwarded in every step, also those that
    have used up their own steps: as many forward passes as the longest attack has steps, and one at the final position.
    Each moves BatchNorm's running statistics; everything else about the model is left as it was found. The steps are
    those of :func:`astra_env.attacks.perturb`. A folded or compiled copy of the network cannot take its place.

    Args:
        model: maps images (N, C, H, W) in [0, 1] to logits (N, K).
        images: (N, C, H, W) float in [0, 1].
        labels: (N,) int64, or (N, K) probabilities.
        strategy: one budget per image, on the images' device.
        start: of the perturbation, inside the ball; clipped to the image box first.
        norm: "linf" or "l2".
        early_stop: an image moves only in the steps in which the network has it right (the likelier class of two mixed
            ones counts); the attack ends when it has none right (LAS-AT, Jia et al. 2022).
        forward: how to call the model, when not simply ``model(images)``.
        world: the ranks over which the batch is spread; all take as many steps as the longest attack of any.

    Returns:
        The adversarial images, and as outputs the training-mode logits of them, without gradient.
    """
    call = forward if forward is not None else model
    ball, goal = get_norm(norm), CrossEntropy(labels)
    hard = labels if labels.dim() == 1 else labels.argmax(1)
    epsilon, step_size = (
        values.view(-1, 1, 1, 1).to(images.dtype) for values in (strategy.epsilon, strategy.step_size)
    )
    most = int(strategy.steps.max()) if len(strategy) else 0
    zero_share = None
    with frozen(model):
        model.train()
        delta = _into_box(images, start)
        for iteration in range(world.maximum(most)):
            moves = strategy.steps > iteration
            with torch.enable_grad():
                position = (images + delta).requires_grad_()
                logits = call(position.view_as(position)).to(images.dtype)
                if early_stop:
                    right = logits.argmax(1) == hard
                    if not bool(right.any()):
                        break
                    moves &= right
                (gradient,) = torch.autograd.grad(goal(logits), position)
            if iteration == 0:
                zero_share = (gradient.flatten(1).abs().amax(1) == 0).float().mean()
            moved = _into_box(images, ball.project(delta + step_size * ball.direction(gradient), epsilon))
            delta = torch.where(moves.view(-1, 1, 1, 1), moved, delta)
        adversarial = (images + delta).clamp_(0, 1)
        with torch.no_grad():
            outputs = call(adversarial).to(images.dtype)
    return AttackResult(adversarial, outputs, zero_share)


def require_attack_mode(field: str, mode: str) -> str:
    """Return ``mode``; raises ConfigError naming ``field`` unless it is "eval" or "train"."""
    if mode not in ATTACK_MODES:
        raise ConfigError(f"{field}: expected one of {', '.join(ATTACK_MODES)}, got {mode!r}; choose one")
    return mode


def _into_box(images: Tensor, delta: Tensor) -> Tensor:
    return (images + delta).clamp(0, 1) - images
