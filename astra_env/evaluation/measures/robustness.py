"""Accuracy on clean images and under projected gradient descent."""

from collections.abc import Callable, Iterator
from typing import Unpack

import torch
from torch import Tensor, nn

from astra_env.attacks import CrossEntropy, Margin, Objective, frozen, get_norm, supervised_attack
from astra_env.data import ImageDataset
from astra_env.distributed import ALONE, World
from astra_env.errors import InputError
from astra_env.evaluation.measures.accuracy import Accuracy
from astra_env.evaluation.measures.batches import Walk, device_of, ordered_batches, require_labels, take
from astra_env.evaluation.probes.classifier import require_finite
from astra_env.strategy import Attack

OBJECTIVES: dict[str, Callable[[Tensor], Objective]] = {"cross_entropy": CrossEntropy, "margin": Margin}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}

Change = Callable[[Tensor, Tensor], Tensor]
"""Maps images (N, C, H, W) in [0, 1] and labels (N,) to the images that are shown to the model."""


def clean_accuracy(model: nn.Module, dataset: ImageDataset, **walk: Unpack[Walk]) -> Accuracy:
    """Return the model's eval-mode accuracy on the images as they are; the model is left as it was found.

    Args:
        model: maps images (N, 3, H, W) in [0, 1] to logits (N, K).
        dataset: labelled images.
        walk: :class:`Walk`.

    Raises:
        InputError: for logits that are not finite or do not fit the classes.
    """
    return accuracy_under(model, dataset, lambda images, labels: images, title="clean", **walk)


def robust_accuracy(
    model: nn.Module,
    dataset: ImageDataset,
    attack: Attack,
    *,
    restarts: int = 1,
    seed: int = 0,
    objective: str = "cross_entropy",
    precision: str = "fp32",
    **walk: Unpack[Walk],
) -> Accuracy:
    """Return the model's accuracy under PGD with a uniform random start in the ball (Madry et al. 2018).

    An image counts as right only when no restart fools the model. A radius of 0 gives the clean accuracy. Deviation:
    the start is clipped to the image box before the first forward; ACL, DynACL and ASTrA evaluate with the start as
    drawn. Measured on digits (PGD-20, steps of 2/255, three fine-tuned networks, 360 images): the same accuracy at
    8/255, at most one image apart at 16/255 and two at 32/255.

    Args:
        model: maps images (N, 3, H, W) in [0, 1] to logits (N, K); used in eval mode and left as it was found.
        dataset: labelled images.
        attack: the papers' standard protocol is ``Attack(8 / 255, 2 / 255, 20)``; ``Attack.crossing`` has steps that
            suit its radius.
        restarts: random starts.
        seed: of the starts, which are drawn in the data set's order.
        objective: "cross_entropy", or "margin" for the Carlini-Wagner margin.
        precision: "fp32", or "bf16" to look for adversarial images in bfloat16: faster and not the same attack. Whether
            an image fools the model is always decided in float32.
        walk: :class:`Walk`.

    Raises:
        InputError: for an unknown objective, numbers out of range, or logits that are not finite.
    """
    change = Restarts(model, attack, restarts=restarts, seed=seed, objective=objective, precision=precision)
    return accuracy_under(model, dataset, change, title=f"PGD-{attack.steps} {objective}", **walk)


class Restarts:
    """The attack of :func:`robust_accuracy` on one batch after another; each continues the stream of random starts."""

    def __init__(
        self,
        model: nn.Module,
        attack: Attack,
        *,
        restarts: int = 1,
        seed: int = 0,
        objective: str = "cross_entropy",
        precision: str = "fp32",
    ) -> None:
        if objective not in OBJECTIVES:
            raise InputError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {objective!r}")
        if restarts < 1:
            raise InputError(f"restarts: expected at least 1, got {restarts}")
        if precision not in PRECISIONS:
            raise InputError(f"precision: expected 'fp32' or 'bf16', got {precision!r}")
        self.model = model
        self.attack = attack
        self.norm = get_norm(attack.norm)
        self.goal, self.autocast = OBJECTIVES[objective], PRECISIONS[precision]
        self.generators = [torch.Generator().manual_seed(seed + restart) for restart in range(restarts)]

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return attacked images; later restarts attack only what withstood the earlier ones."""
        best, rows = images.clone(), torch.arange(len(images), device=images.device)
        for restart, start in enumerate(self._starts(images)):
            if restart:
                rows = rows[self.model(best[rows]).argmax(1) == labels[rows]]
            if len(rows):
                best[rows] = supervised_attack(
                    self.model,
                    images[rows],
                    labels[rows],
                    self.attack.strategy(len(rows), images.device),
                    norm=self.attack.norm,
                    init=start[rows],
                    objective=self.goal(labels[rows]),
                    autocast=self.autocast,
                ).adversarial
        return best

    def skip(self, images: Tensor, labels: Tensor) -> None:
        """Draw the random starts of a batch that another rank attacks."""
        for _ in self._starts(images):
            pass

    def _starts(self, images: Tensor) -> Iterator[Tensor]:
        # Drawn for all images, so that a start does not depend on which of them are already fooled.
        for generator in self.generators:
            yield self.norm.uniform(images, self.attack.epsilon, generator)


def accuracy_under(
    model: nn.Module,
    dataset: ImageDataset,
    change: Change,
    *,
    title: str = "",
    batch_size: int = 256,
    max_images: int | None = None,
    progress: bool = False,
    world: World = ALONE,
) -> Accuracy:
    """Return the model's eval-mode accuracy on what ``change`` makes of the images.

    Each of several processes takes every ``size``-th batch, so that no batch is another than in one process. It lets
    ``change.skip``, or ``change`` itself where it has none, pass over the others, for the sake of its random numbers.
    The remaining arguments are those of :class:`Walk`.
    """
    require_labels(dataset)
    part = take(dataset, max_images)
    device = device_of(model)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    with frozen(model):
        batches = ordered_batches(part, batch_size, device, title=title, progress=progress and world.main)
        for index, (images, labels) in enumerate(batches):
            if index % world.size != world.rank:
                getattr(change, "skip", change)(images, labels)
                continue
            correct += is_right(model, change(images, labels), labels, len(part.classes)).sum()
    return Accuracy(int(world.total(correct)), len(part))


@torch.no_grad()
def is_right(model: nn.Module, images: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return which of the images (N, C, H, W) the model gives their label (N,): bool (N,).

    Raises InputError for logits that are not (N, num_classes) or not finite.
    """
    logits = model(images)
    if logits.dim() != 2 or logits.shape[1] != num_classes:
        raise InputError(
            f"model: expected logits (N, {num_classes}) for the data set's classes, got {tuple(logits.shape)}; "
            "evaluate on the data set it was trained on, or probe the encoder with a new head"
        )
    require_finite(logits, "model logits")
    return logits.argmax(1) == labels
