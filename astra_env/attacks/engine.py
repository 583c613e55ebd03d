"""The attack engine: projected gradient ascent in which every image has its own budget.

Exact savings over the plain loop, none of which changes a number: gradients are taken with respect to the input only
while parameters are frozen; images that have used up their own steps leave the batch and keep their cached outputs,
which a joint objective still sees; the outputs at the final position come back for free.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from astra_env.attacks.norms import Norm
from astra_env.attacks.objectives import Objective
from astra_env.distributed import ALONE, World
from astra_env.errors import InputError
from astra_env.strategy import AttackStrategy


@dataclass(frozen=True)
class AttackResult:
    """What an attack leaves behind.

    Attributes:
        adversarial: images of the input's shape and dtype, inside the ball and the [0, 1] box.
        outputs: the network's outputs (N, D) on ``adversarial``, without gradient; None when not asked for.
        zero_gradient_share: share of the images with at least one step whose first gradient is zero everywhere, on the
            device; None when none has a step. An attack without gradients does nothing and says nothing.
    """

    adversarial: Tensor
    outputs: Tensor | None
    zero_gradient_share: Tensor | None = None


ATTACK_MODES = ("eval", "train")


@contextmanager
def in_mode(model: nn.Module, mode: str = "eval") -> Iterator[None]:
    """Hold ``model`` in one mode; restore every module's own on the way out.

    Args:
        model: the network.
        mode: "eval" or "train"; in training mode BatchNorms normalise by the batch, and their running statistics move.

    Raises:
        InputError: for another mode.
    """
    if mode not in ATTACK_MODES:
        raise InputError(f"attack_mode: expected 'eval' or 'train', got {mode!r}")
    modes = [(module, module.training) for module in model.modules()]
    model.train(mode == "train")
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen(model: nn.Module, mode: str = "eval") -> Iterator[None]:
    """Hold ``model`` in one mode, as :func:`in_mode` does, and without parameter gradients; restore every flag too."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with in_mode(model, mode):
        try:
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)


def perturb(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    strategy: AttackStrategy,
    objective: Objective,
    *,
    norm: Norm,
    delta: Tensor,
    final_outputs: bool = False,
    world: World = ALONE,
    chunks: int = 1,
    clip_start: bool = True,
    whole_batch: bool = False,
    may_move: Callable[[Tensor], Tensor] | None = None,
) -> AttackResult:
    """Move each image up the gradient of ``objective`` for its own number of steps.

    One step is ``delta += step_size * direction(gradient)``, projected to the ball of radius epsilon, then to the
    image box. Images of zero steps stay at their start, projected to their ball and the box. Waits for the device once,
    to learn the step counts.

    Args:
        forward: maps images (n, C, H, W) of any n to outputs (n, D), independently per image unless ``whole_batch``.
        images: (N, C, H, W) float in [0, 1].
        strategy: N budgets on the images' device.
        objective: what to maximise, of outputs (N, D) in the batch's order.
        norm: the ball's norm.
        delta: start of the perturbation, like ``images``.
        final_outputs: also return the outputs at the final position (one more forward per image).
        world: the ranks over which the batch is spread; a joint objective sees the outputs of all of them, and all go
            through as many iterations as the slowest. The result is about this rank's images.
        chunks: take gradients in so many parts of the batch, when memory holds no more (one more forward a step).
        clip_start: clip the start to the image box before the first forward (ASTrA, RoCL, ReBAT); otherwise the network
            first sees ``images + delta`` as it is, outside [0, 1] too (ACL, DynACL, DeACL, TRADES, MART).
        whole_batch: ``forward`` always gets all images in their order, finished ones too: for networks in training
            mode, whose outputs depend on the whole batch, and for a ``forward`` that treats rows differently. All ranks
            then go through as many iterations as the slowest, whatever the objective.
        may_move: which images move on, bool (N,), by the outputs (N, D) before a step; the attack ends when none does
            (LAS-AT). Needs ``whole_batch``.

    Raises:
        InputError: when strategy and images differ in number, or a whole batch is to be worked off in chunks.
    """
    if len(strategy) != len(images):
        raise InputError(f"strategy: expected one entry per image ({len(images)}), got {len(strategy)}")
    if whole_batch and chunks > 1:
        raise InputError(f"chunks: expected 1 for a forward that needs the whole batch, got {chunks}")
    if may_move is not None and not whole_batch:
        raise InputError("may_move: images stop early only where the whole batch is forwarded; set whole_batch")
    delta = _into_box(images, delta) if clip_start else delta
    if whole_batch:
        return _perturb_whole(forward, images, strategy, objective, norm, delta, final_outputs, world, may_move)
    schedule = _Schedule(strategy.steps)
    images, delta = schedule.sort(images), schedule.sort(delta)
    epsilon, step_size = (
        schedule.sort(t).view(-1, 1, 1, 1).to(images.dtype) for t in (strategy.epsilon, strategy.step_size)
    )
    delta = delta.clone()
    idle = schedule.moving(0)
    delta[idle:] = _into_box(images[idle:], norm.project(delta[idle:], epsilon[idle:]))
    cache = _OutputCache(forward, schedule, needed=final_outputs or objective.joint)

    def value(outputs: Tensor) -> Tensor:
        every = cache.complete(outputs)
        return objective(world.join(every) if objective.joint else every)

    before, zero_share = len(images), None
    iterations = world.maximum(schedule.iterations) if objective.joint else schedule.iterations
    for iteration in range(iterations):
        moving = schedule.moving(iteration)
        cache.store(images, delta, moving, before)
        before = moving
        if moving == 0:
            world.gather(cache.complete())  # images of other ranks still move, and their gradient needs ours
            continue
        position = images[:moving] + delta[:moving]
        gradient = _gradient(forward, value, position, chunks)
        if iteration == 0:
            zero_share = (gradient.flatten(1).abs().amax(1) == 0).float().mean()
        stepped = delta[:moving] + step_size[:moving] * norm.direction(gradient)
        delta[:moving] = _into_box(images[:moving], norm.project(stepped, epsilon[:moving]))
    if final_outputs:
        cache.store(images, delta, 0, before)
    outputs = schedule.restore(cache.outputs) if final_outputs and cache.outputs is not None else None
    return AttackResult(schedule.restore((images + delta).clamp_(0, 1)), outputs, zero_share)


def _perturb_whole(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    strategy: AttackStrategy,
    objective: Objective,
    norm: Norm,
    delta: Tensor,
    final_outputs: bool,
    world: World,
    may_move: Callable[[Tensor], Tensor] | None,
) -> AttackResult:
    """Do what :func:`perturb` does, but forward every image at every step, in the batch's order."""
    epsilon, step_size = (t.view(-1, 1, 1, 1).to(images.dtype) for t in (strategy.epsilon, strategy.step_size))
    attacked = strategy.steps > 0
    most = int(strategy.steps.max()) if len(strategy) else 0
    delta = torch.where(attacked.view(-1, 1, 1, 1), delta, _into_box(images, norm.project(delta, epsilon)))
    zero_share = None
    for iteration in range(world.maximum(most)):
        moves = strategy.steps > iteration
        with torch.enable_grad():
            position = (images + delta).requires_grad_()
            outputs = forward(position.view_as(position))
            if may_move is not None:
                still = may_move(outputs.detach())
                if not bool(still.any()):
                    break
                moves &= still
            goal = objective(world.join(outputs) if objective.joint else outputs)
            (gradient,) = torch.autograd.grad(goal, position)
        if iteration == 0 and most > 0:
            zero = (gradient.flatten(1).abs().amax(1) == 0) & attacked
            zero_share = zero.sum().float() / attacked.sum()
        moved = _into_box(images, norm.project(delta + step_size * norm.direction(gradient), epsilon))
        delta = torch.where(moves.view(-1, 1, 1, 1), moved, delta)
    adversarial = (images + delta).clamp_(0, 1)
    with torch.no_grad():
        final = forward(adversarial) if final_outputs else None
    return AttackResult(adversarial, final, zero_share)


def _gradient(
    forward: Callable[[Tensor], Tensor], value: Callable[[Tensor], Tensor], position: Tensor, chunks: int
) -> Tensor:
    """Return the gradient of ``value(forward(position))``; in chunks, by way of the gradient of all outputs."""
    with torch.enable_grad():
        if chunks == 1:
            position.requires_grad_()
            # A view, because PyTorch's module hooks (FLOP counters, say) refuse to see the leaf itself.
            return torch.autograd.grad(value(forward(position.view_as(position))), position)[0]
        parts = [part for part in position.tensor_split(chunks) if len(part)]
        with torch.no_grad():
            outputs = torch.cat([forward(part) for part in parts])
        (signal,) = torch.autograd.grad(value(outputs.requires_grad_()), outputs)
        gradients: list[Tensor] = []
        for part, wanted in zip(parts, signal.split([len(part) for part in parts]), strict=True):
            part.requires_grad_()
            gradients += torch.autograd.grad(forward(part.view_as(part)), part, wanted)
        return torch.cat(gradients)


def _into_box(images: Tensor, delta: Tensor) -> Tensor:
    return (images + delta).clamp_(0, 1).sub_(images)


class _Schedule:
    """Orders images by falling step count, so that the ones still moving are always the first rows."""

    def __init__(self, steps: Tensor) -> None:
        counts = np.array(steps.tolist(), dtype=np.int64)  # the one wait; everything else stays on the device
        self.total = len(counts)
        self.iterations = int(counts.max(initial=0))
        self._sorted = bool((np.diff(counts) <= 0).all())
        self._order = torch.argsort(steps, descending=True, stable=True)
        self._inverse = torch.argsort(self._order)
        self._moving = self.total - np.cumsum(np.bincount(counts, minlength=self.iterations + 1))

    def moving(self, iteration: int) -> int:
        """Number of images with more than ``iteration`` steps."""
        return int(self._moving[iteration]) if iteration < len(self._moving) else 0

    def sort(self, values: Tensor) -> Tensor:
        return values if self._sorted else values[self._order]

    def restore(self, values: Tensor) -> Tensor:
        return values if self._sorted else values[self._inverse]


class _OutputCache:
    """Keeps the outputs of images that stopped moving, so that a joint objective still sees the whole batch."""

    def __init__(self, forward: Callable[[Tensor], Tensor], schedule: _Schedule, needed: bool) -> None:
        self._forward = forward
        self._schedule = schedule
        self._needed = needed
        self.outputs: Tensor | None = None

    @torch.no_grad()
    def store(self, images: Tensor, delta: Tensor, start: int, stop: int) -> None:
        """Compute and keep the outputs of rows ``start`` to ``stop``, which have reached their final position."""
        if start == stop or not self._needed:
            return
        outputs = self._forward(images[start:stop] + delta[start:stop])
        if self.outputs is None:
            self.outputs = outputs.new_zeros(len(images), *outputs.shape[1:])
        self.outputs[start:stop] = outputs

    def complete(self, outputs: Tensor | None = None) -> Tensor:
        """Return the outputs of the whole batch in its own order: the moving rows', then the kept ones."""
        if outputs is None:
            assert self.outputs is not None
            return self._schedule.restore(self.outputs)
        missing = self._schedule.total - len(outputs)
        if missing:
            kept = (
                self.outputs[len(outputs) :]
                if self.outputs is not None
                else outputs.new_zeros(missing, outputs.shape[1])
            )
            outputs = torch.cat((outputs, kept))
        return self._schedule.restore(outputs)
