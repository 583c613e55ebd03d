"""Projected gradient descent attacks over the engine: contrastive and supervised."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from astra_env.attacks.engine import AttackResult, frozen, perturb
from astra_env.attacks.norms import Norm, get_norm
from astra_env.attacks.objectives import Contrastive, CrossEntropy, Objective
from astra_env.distributed import ALONE, World
from astra_env.errors import InputError
from astra_env.strategy import AttackStrategy, check_pixel_units

START_RADIUS = 8 / 255
"""Radius of the uniform start of the contrastive attack, whatever epsilon is (ASTrA, ACL)."""


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
        init: start of the perturbation; default uniform in +-8/255. Clipped to the image box.
        generator: source of the default start.
        temperature: of NT-Xent.
        norm: "linf" or "l2".

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
        temperature=temperature,
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
    temperature: float = 0.5,
    norm: str = "linf",
    autocast: torch.dtype | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
    objective: Objective | None = None,
    final_outputs: bool = True,
    world: World = ALONE,
    chunks: int = 1,
    clip_start: bool = True,
    attack_mode: str = "eval",
    whole_batch: bool = False,
) -> AttackResult:
    """Do what :func:`contrastive_pgd` does and also return the features of the adversarial views.

    Args beyond those of :func:`contrastive_pgd`:
        autocast: run the encoder's forward and backward passes in this dtype; features, loss and perturbation stay
            in the views' dtype.
        forward: how to compute features, when not by ``encoder(views, branch=branch)`` (a folded copy of it, say).
        objective: what to maximise, of the features of all views; default NT-Xent at ``temperature``.
        final_outputs: whether to compute the final features.
        world: the ranks over which the batch is spread: ``views``, ``strategy``, ``init`` and the result are this
            rank's part, ``generator`` is every rank's alike, and NT-Xent is that of all views.
        chunks: as in the engine.
        clip_start: as in the engine.
        attack_mode: mode of the encoder, "eval" or "train" (AdvCL). In training mode every step forwards the whole
            batch and BatchNorms' running statistics move; the final features are those of eval mode all the same.
        whole_batch: as in the engine.

    Raises:
        InputError: for another mode.
    """
    if attack_mode not in ("eval", "train"):
        raise InputError(f"attack_mode: expected 'eval' or 'train', got {attack_mode!r}")
    ball = get_norm(norm)
    delta = init if init is not None else world.own(ball.uniform(world.whole(views), START_RADIUS, generator))

    def encode(images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
            features = encoder(images, branch=branch) if forward is None else forward(images)
        return features.to(images.dtype)

    goal = objective if objective is not None else Contrastive(temperature)
    training = attack_mode == "train"
    with frozen(encoder, attack_mode):
        attack = perturb(
            encode,
            views,
            strategy,
            goal,
            norm=ball,
            delta=delta,
            final_outputs=final_outputs and not training,
            world=world,
            chunks=chunks,
            clip_start=clip_start,
            whole_batch=whole_batch or training,
        )
    if not (final_outputs and training):
        return attack
    with frozen(encoder), torch.no_grad():
        return replace(attack, outputs=encode(attack.adversarial))


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
        norm: "linf" or "l2".
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
    if norm == "linf":
        check_pixel_units("epsilon", epsilon)
        check_pixel_units("step_size", step_size)
    return supervised_attack(
        model,
        images,
        labels,
        AttackStrategy.repeated(len(images), epsilon, steps, step_size, images.device),
        norm=norm,
        init=init if init is not None else get_norm(norm).uniform(images, epsilon, generator),
        objective=objective,
        forward=forward,
        autocast=autocast,
    ).adversarial


def supervised_attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    strategy: AttackStrategy,
    *,
    norm: str = "linf",
    init: Tensor | None = None,
    generator: torch.Generator | None = None,
    objective: Objective | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
    autocast: torch.dtype | None = None,
    final_outputs: bool = False,
    world: World = ALONE,
    groups: int = 1,
    clip_start: bool = True,
) -> AttackResult:
    """Do what :func:`supervised_pgd` does with a budget of its own for every image; returns all the attack knows.

    Args beyond those of :func:`supervised_pgd`:
        strategy: one budget per image, on the images' device; the default start is uniform in each image's own ball.
        final_outputs: also return the logits at the final position (one more forward per image).
        world: the ranks over which a batch is spread; ``images`` are this rank's, the start is drawn for all.
        groups: the batch is so many batches, one behind the other, each spread alike (:meth:`World.own`).
        clip_start: as in the engine.
    """
    ball = get_norm(norm)
    call = forward if forward is not None else model

    def run(batch: Tensor) -> Tensor:
        with torch.autocast(batch.device.type, autocast, enabled=autocast is not None):
            logits = call(batch)
        return logits.to(batch.dtype)

    goal = objective if objective is not None else CrossEntropy(labels)
    delta = init if init is not None else _start(ball, images, strategy.epsilon, generator, world, groups)
    with frozen(model):
        return perturb(
            run, images, strategy, goal, norm=ball, delta=delta, final_outputs=final_outputs, clip_start=clip_start
        )


def _start(
    ball: Norm, images: Tensor, epsilon: Tensor, generator: torch.Generator | None, world: World, groups: int
) -> Tensor:
    """Return a uniform start in each image's own ball; of several ranks, each draws for all and takes its own."""
    radius = epsilon.view(-1, 1, 1, 1).to(images.dtype)
    if world.alone:
        return ball.uniform(images, radius, generator)
    return world.own(ball.uniform(world.whole(images), 1.0, generator), groups) * radius
