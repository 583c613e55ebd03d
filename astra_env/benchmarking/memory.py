"""How many bytes a training step needs: counted on a small batch on any device, scaled to the batch that is wanted."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from astra_env.attacks import frozen
from astra_env.learner import ContrastiveLearner


def saved_bytes(work: Callable[[], Any], without: Iterable[Tensor] = ()) -> int:
    """Return the bytes that ``work`` keeps for a backward pass, each storage once.

    Args:
        work: builds a graph and returns what holds it.
        without: tensors that exist anyway, such as the parameters.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = work()  # alive until the count is done, so that no storage is used twice
    known = {tensor.untyped_storage().data_ptr() for tensor in without}
    total = sum(size for place, size in kept.items() if place not in known)
    del graph
    return total


def bytes_per_view(learner: ContrastiveLearner) -> dict[str, float]:
    """Return the bytes per view that a backward pass needs: of training (clean and adversarial) and of an attack step.

    The learner's step count, weights and statistics of BatchNorm stay as they are, up to the running averages.
    """
    batch, target = learner.batch(), learner.target
    views = batch.views
    mine = [*target.parameters(), *target.buffers()]
    training = saved_bytes(lambda: learner.objective(learner.encode, batch, views), mine)
    forward: Callable[[Tensor], Tensor] = lambda images: learner.objective.outputs(images, "adv")  # noqa: E731
    copied: list[Tensor] = []
    if learner.speed.fold_batchnorm:
        forward = learner._attacked.forward(len(views))
        copied = list(forward.buffers()) if isinstance(forward, torch.nn.Module) else []

    def attack_step() -> Tensor:
        dtype = None if learner.speed.fold_batchnorm else learner.autocast
        with torch.autocast(learner.device.type, dtype, enabled=dtype is not None):
            return forward(views.clone().requires_grad_().view_as(views))

    with frozen(target):
        attack = saved_bytes(attack_step, [*mine, *copied])
    return {"training": training / len(views), "attack": attack / len(views)}


def model_of_memory(learner: ContrastiveLearner, views: int) -> dict[str, float]:
    """Return the bytes that a step on ``views`` views needs at its peak, by what holds them.

    Activations grow with the views; NT-Xent's similarities with their square. Attack and training follow each other, so
    the larger counts. What libraries ask for on the side (workspaces, fragments) is not included.
    """
    per_view = bytes_per_view(learner)
    weights = sum(p.numel() * p.element_size() for p in learner.target.parameters())
    images = views * learner.views()[0].numel()
    parts = {
        "weights_gradients_momentum": 3.0 * weights,
        "activations": views * max(per_view.values()),
        "similarities": similarity_bytes(views),
        # Clean, adversarial, perturbation, its step and gradient in float32; the observation in uint8.
        "images": 21.0 * images,
    }
    return {**{f"{name}_per_view": size for name, size in per_view.items()}, **parts, "peak": sum(parts.values())}


def similarity_bytes(views: int) -> float:
    """Return the bytes of ASTrA's three NT-Xent losses: logits and their log-softmax in float32, masks in bool.

    Two losses compare the views with each other, the mixed one twice as many rows.
    """
    per_entry = 4 + 4 + 1
    return float(per_entry * (2 * views**2 + (2 * views) ** 2))
