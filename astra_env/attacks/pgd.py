"""Projected gradient descent attacks over the engine: contrastive and supervised."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn

from astra_env.attacks.engine import AttackResult, frozen, perturb
from astra_env.attacks.norms import Norm, get_norm
from astra_env.attacks.objectives import Contrastive, CrossEntropy, Objective
from astra_env.distributed import ALONE, World
from astra_env.strategy import Attack, AttackStrategy

START_RADIUS = 8 / 255
"""Radius of the uniform start of the contrastive l-inf attack, whatever epsilon is (ASTrA, ACL)."""


class AttackOptions(TypedDict, total=False):
    """How an attack is computed, whatever it attacks; both attacks take these by keyword.

    Attributes:
        norm: of the ball, a name in :data:`astra_env.attacks.NORMS`; default "linf".
        autocast: run the network's forward and backward passes in this dtype; outputs, loss and perturbation stay in
            the images' dtype.
        attack_mode: mode of the network, "eval" (default) or "train". In training mode every step forwards the whole
            batch and BatchNorms' running statistics move; everything else about the network is left as it was.
        world: the processes over which the batch is spread: images, strategy, ``init`` and the result are this
            process's part, the generator is every process's alike, and a joint objective sees the outputs of all.
        groups: the batch is so many batches, one behind the other, each spread alike (:meth:`World.own`).
        final_outputs, chunks, clip_start, whole_batch: as in :func:`astra_env.attacks.perturb`.
    """

    norm: str
    autocast: torch.dtype | None
    attack_mode: str
    world: World
    groups: int
    final_outputs: bool
    chunks: int
    clip_start: bool
    whole_batch: bool


def contrastive_pgd(
    encoder: nn.Module,
    views: Tensor,
    strategy: AttackStrategy,
    *,
    branch: str = "adv",
    init: Tensor | None = None,
    generator: torch.Generator | None = None,
    temperature: float = 0.5,
    norm: str = "linf",
) -> Tensor:
    """Attack both views of every image jointly, maximising the batch's NT-Xent (ASTrA 2025, section 3).

    The encoder is used in eval mode through ``branch`` and left exactly as it was found.

    Args:
        encoder: called as ``encoder(views, branch=branch)`` -> features (n, D).
        views: (2B, C, H, W) float in [0, 1]; rows 2k and 2k+1 are a pair.
        strategy: one budget per view, on the views' device.
        branch: BatchNorm branch of the forward passes, "clean" or "adv".
        init: start of the perturbation; default uniform in +-8/255 for "linf" (as published, whatever epsilon is), in
            another norm uniform in the ball of each view's own epsilon. Clipped to the image box.
        generator: source of the default start.
        temperature: of NT-Xent.
        norm: of the ball, a name in :data:`astra_env.attacks.NORMS`.

    Returns:
        Adversarial views, like ``views``.
    """
    return contrastive_attack(
        encoder,
        views,
        strategy,
        branch=branch,
        init=init,
        generator=generator,
        objective=Contrastive(temperature),
        norm=norm,
        final_outputs=False,
    ).adversarial


def contrastive_attack(
    encoder: nn.Module,
    views: Tensor,
    strategy: AttackStrategy,
    *,
    branch: str = "adv",
    init: Tensor | None = None,
    generator: torch.Generator | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
    objective: Objective | None = None,
    **options: Unpack[AttackOptions],
) -> AttackResult:
    """Do what :func:`contrastive_pgd` does and also return the features of the adversarial views, those of eval mode.

    Args beyond those of :func:`contrastive_pgd`:
        forward: how to compute features, when not by ``encoder(views, branch=branch)`` (a folded copy of it, say).
        objective: what to maximise, of the features of all views; default NT-Xent.
        options: :class:`AttackOptions`; ``final_outputs`` is true by default.
    """
    call = forward if forward is not None else lambda images: encoder(images, branch=branch)
    goal = objective if objective is not None else Contrastive()
    radius = START_RADIUS if options.get("norm", "linf") == "linf" else strategy.epsilon
    wanted = options.pop("final_outputs", True)
    afterwards = wanted and options.get("attack_mode") == "train"
    options["final_outputs"] = wanted and not afterwards
    attack = _ascend(encoder, call, views, strategy, goal, init, radius, generator, **options)
    if not afterwards:
        return attack
    with frozen(encoder), torch.no_grad():
        return replace(attack, outputs=_in_precision(call, options.get("autocast"))(attack.adversarial))


def supervised_pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    norm: str = "linf",
    init: Tensor | None = None,
    generator: torch.Generator | None = None,
    objective: Objective | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """Attack a classifier's decisions (PGD, Madry et al. 2018).

    The model is used in eval mode and left exactly as it was found.

    Args:
        model: maps images (N, C, H, W) in [0, 1] to logits (N, K).
        images: (N, C, H, W) float in [0, 1].
        labels: (N,) int64.
        epsilon: radius in [0, 1] pixel units (l-inf: per pixel; l-2: length of the whole perturbation; may exceed 1).
        step_size: length of a step, in the same units.
        steps: number of steps.
        norm: of the ball, a name in :data:`astra_env.attacks.NORMS`.
        init: start of the perturbation; default uniform in the ball. Pass zeros to start at the image.
        generator: source of the default start.
        objective: what to maximise; default cross-entropy against ``labels``.
        forward: how to call the model, when not simply ``model(images)`` (a branch, say).
        autocast: run the model in this dtype.

    Returns:
        Adversarial images, like ``images``.

    Raises:
        InputError: for a radius in 0-255 units, a negative number of steps or an unknown norm.
    """
    strategy = Attack(epsilon, step_size, steps, norm).strategy(len(images), images.device)
    return supervised_attack(
        model,
        images,
        labels,
        strategy,
        init=init if init is not None else get_norm(norm).uniform(images, epsilon, generator),
        objective=objective,
        forward=forward,
        norm=norm,
        autocast=autocast,
    ).adversarial


def supervised_attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    strategy: AttackStrategy,
    *,
    init: Tensor | None = None,
    generator: torch.Generator | None = None,
    objective: Objective | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
    early_stop: bool = False,
    **options: Unpack[AttackOptions],
) -> AttackResult:
    """Do what :func:`supervised_pgd` does with a budget of its own for every image; returns all the attack knows.

    In training mode (ReBAT, RPAT++ and LAS-AT's look-ahead as released) ``model`` must be the network itself, not a
    folded copy, and final outputs are those of training mode, one more pass that moves the running statistics.

    Args beyond those of :func:`supervised_pgd`:
        strategy: one budget per image, on the images' device; the default start is uniform in each image's own ball.
        early_stop: an image moves only in the steps in which the network has it right (the likelier class of two mixed
            ones counts); the attack ends when it has none right (LAS-AT, Jia et al. 2022). Needs training mode.
        options: :class:`AttackOptions`.
    """
    goal = objective if objective is not None else CrossEntropy(labels)
    hard = labels if labels.dim() == 1 else labels.argmax(1)
    return _ascend(
        model,
        forward if forward is not None else model,
        images,
        strategy,
        goal,
        init,
        strategy.epsilon,
        generator,
        may_move=(lambda logits: logits.argmax(1) == hard) if early_stop else None,
        **options,
    )


def _ascend(
    network: nn.Module,
    call: Callable[[Tensor], Tensor],
    images: Tensor,
    strategy: AttackStrategy,
    objective: Objective,
    init: Tensor | None,
    radius: Tensor | float,
    generator: torch.Generator | None,
    *,
    may_move: Callable[[Tensor], Tensor] | None = None,
    norm: str = "linf",
    autocast: torch.dtype | None = None,
    attack_mode: str = "eval",
    world: World = ALONE,
    groups: int = 1,
    whole_batch: bool = False,
    final_outputs: bool = False,
    chunks: int = 1,
    clip_start: bool = True,
) -> AttackResult:
    """Hold the network in its mode and let the engine ascend from ``init``, by default uniform within ``radius``."""
    ball = get_norm(norm)
    delta = init if init is not None else _start(ball, images, radius, generator, world, groups)
    with frozen(network, attack_mode):
        return perturb(
            _in_precision(call, autocast),
            images,
            strategy,
            objective,
            norm=ball,
            delta=delta,
            final_outputs=final_outputs,
            world=world,
            chunks=chunks,
            clip_start=clip_start,
            whole_batch=whole_batch or attack_mode == "train",
            may_move=may_move,
        )


def _in_precision(call: Callable[[Tensor], Tensor], autocast: torch.dtype | None) -> Callable[[Tensor], Tensor]:
    """Return ``call`` computed in ``autocast``, its outputs in the images' dtype."""

    def run(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
            outputs = call(images)
        return outputs.to(images.dtype)

    return run


def _start(
    ball: Norm, images: Tensor, radius: Tensor | float, generator: torch.Generator | None, world: World, groups: int
) -> Tensor:
    """Return a start drawn uniformly from each image's ball; every process draws for all and takes its own part."""
    if isinstance(radius, Tensor):
        radius = radius.view(-1, 1, 1, 1).to(images.dtype)
    if world.alone:
        return ball.uniform(images, radius, generator)
    return world.own(ball.uniform(world.whole(images), 1.0, generator), groups) * radius
