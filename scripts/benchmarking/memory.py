"""How many bytes a training step needs: counted on a small batch on any device, scaled to the batch that is wanted."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from astra_env.attacks import frozen
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.models.folded import Folded
from astra_env.objectives import Batch


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
    """Return what a backward pass of the learner's next minibatch keeps, in bytes.

    What grows with the views and what does not (casts of the weights) are told apart by counting half of them too.
    Weights stay as they are; the running statistics of BatchNorm see the minibatch.

    Returns:
        ``training`` (clean and adversarial) and ``attack`` (one step of it): bytes per view. ``weight_copies``: bytes
        whatever the number of views.
    """
    views = learner.views()
    half = 2 * (len(views) // 4)
    more = len(views) - half
    whole, part = (_training_bytes(learner, rows) for rows in (len(views), half))
    attacks, copies = _attack_bytes(learner, len(views)), 0
    if learner.speed.fold_batchnorm:
        copies = sum(buffer.nbytes for buffer in _copy_of(learner).buffers())
    per_view = (whole - part) / more
    return {
        "training": per_view,
        "attack": (attacks - _attack_bytes(learner, half)) / more,
        "weight_copies": max(0.0, whole - per_view * len(views)) + copies,
    }


def _training_bytes(learner: ContrastiveLearner, rows: int) -> int:
    batch = learner.batch()
    cut = Batch(batch.views[:rows], batch.indices[: rows // 2])
    exists = [*learner.target.parameters(), *learner.target.buffers()]
    return saved_bytes(lambda: learner.objective(learner.encode, cut, cut.views), exists)


def _attack_bytes(learner: ContrastiveLearner, rows: int) -> int:
    views, folded = learner.views()[:rows], learner.speed.fold_batchnorm
    copy = _copy_of(learner) if folded else None
    autocast = None if folded else learner.autocast

    def features() -> Tensor:
        images = views.clone().requires_grad_().view_as(views)
        with torch.autocast(learner.device.type, autocast, enabled=autocast is not None):
            return learner.objective.outputs(images, "adv") if copy is None else copy(images)

    exists = [*learner.target.parameters(), *learner.target.buffers()]
    with frozen(learner.target):
        return saved_bytes(features, [*exists, *(copy.buffers() if copy is not None else [])])


def _copy_of(learner: ContrastiveLearner) -> Folded:
    return Folded(learner.target, learner.autocast or torch.float32, branch="adv")


def model_of_memory(learner: ContrastiveLearner, views: int) -> dict[str, float]:
    """Return the bytes that a step on ``views`` views needs at its peak, by what holds them.

    Activations grow with the views; NT-Xent's similarities with their square. Attack and training follow each other, so
    the larger counts. What libraries ask for on the side (workspaces, fragments) is not included.
    """
    counted = bytes_per_view(learner)
    weights = sum(p.numel() * p.element_size() for p in learner.target.parameters())
    parts = {
        "weights_gradients_momentum": 3.0 * weights,
        "weight_copies": counted["weight_copies"],
        "activations": views * max(counted["training"], counted["attack"]),
        "similarities": similarity_bytes(views),
        # Clean, adversarial, perturbation, its step and gradient in float32; the observation in uint8.
        "images": 21.0 * views * learner.views()[0].numel(),
    }
    per_view = {f"{name}_per_view": counted[name] for name in ("training", "attack")}
    return {**per_view, **parts, "peak": sum(parts.values())}


def similarity_bytes(views: int) -> float:
    """Return the bytes of ASTrA's three NT-Xent losses: logits and their log-softmax in float32, masks in bool.

    Two losses compare the views with each other, the mixed one twice as many rows.
    """
    per_entry = 4 + 4 + 1
    return float(per_entry * (2 * views**2 + (2 * views) ** 2))
