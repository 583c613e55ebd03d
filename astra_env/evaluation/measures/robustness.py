"""Accuracy on clean images and under projected gradient descent."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from astra_env.attacks import CrossEntropy, Margin, Objective, frozen, get_norm, supervised_pgd
from astra_env.data import ImageDataset
from astra_env.distributed import ALONE, World
from astra_env.errors import InputError
from astra_env.evaluation.measures.accuracy import Accuracy
from astra_env.evaluation.measures.batches import device_of, ordered_batches, require_labels, take
from astra_env.evaluation.probes.classifier import require_finite

STEP_FACTOR = 2.5
"""Total way of the default steps, in radii: enough to cross the ball whatever the number of steps (Madry 2018)."""

Change = Callable[[Tensor, Tensor], Tensor]
"""Maps images (N, C, H, W) in [0, 1] and labels (N,) to the images that are shown to the model."""


def clean_accuracy(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    batch_size: int = 256,
    max_images: int | None = None,
    progress: bool = False,
    world: World = ALONE,
) -> Accuracy:
    """Return the model's eval-mode accuracy on the images as they are; the model is left as it was found.

    Args:
        model: maps images (N, 3, H, W) in [0, 1] to logits (N, K).
        dataset: labelled images.
        batch_size: images per forward pass.
        max_images: draw this many images; default all.
        progress: show a progress bar.
        world: the ranks that share the batches out among them; each then knows the accuracy on all images.

    Raises:
        InputError: for logits that are not finite or do not fit the classes.
    """
    return accuracy_under(
        model,
        dataset,
        lambda images, labels: images,
        batch_size=batch_size,
        max_images=max_images,
        title="clean",
        progress=progress,
        world=world,
    )


def robust_accuracy(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    epsilon: float,
    steps: int = 20,
    step_size: float | None = None,
    norm: str = "linf",
    restarts: int = 1,
    batch_size: int = 256,
    seed: int = 0,
    max_images: int | None = None,
    objective: str = "cross_entropy",
    precision: str = "fp32",
    progress: bool = False,
    world: World = ALONE,
) -> Accuracy:
    """Return the model's accuracy under PGD with a uniform random start in the ball (Madry et al. 2018).

    An image counts as right only when no restart fools the model. ``epsilon=0`` is the clean accuracy. Deviation: the
    start is clipped to the image box before the first forward; ACL, DynACL and ASTrA evaluate with the start as drawn.
    Measured on digits (PGD-20, steps of 2/255, three fine-tuned networks, 360 images): the same accuracy at 8/255,
    at most one image apart at 16/255 and two at 32/255.

    Args:
        model: maps images (N, 3, H, W) in [0, 1] to logits (N, K); used in eval mode and left as it was found.
        dataset: labelled images.
        epsilon: radius in [0, 1] pixel units.
        steps: number of steps.
        step_size: length of a step in the same units; default ``2.5 * epsilon / steps``. The papers' standard protocol
            is 2/255 at 20 steps in 8/255: pass it to compare with their tables.
        norm: "linf" or "l2".
        restarts: random starts.
        batch_size: images attacked at once; the result does not depend on it, up to rounding.
        seed: of the starts, which are drawn in the data set's order.
        max_images: draw this many images; default all.
        objective: "cross_entropy", or "margin" for the Carlini-Wagner margin.
        precision: "fp32", or "bf16" to look for adversarial images in bfloat16: faster and not the same attack. Whether
            an image fools the model is always decided in float32.
        progress: show a progress bar.
        world: the ranks that share the batches out among them; what comes out is what one process finds.

    Raises:
        InputError: for an unknown objective, numbers out of range, or logits that are not finite.
    """
    change = pgd_attack(
        model,
        epsilon=epsilon,
        steps=steps,
        step_size=step_size,
        norm=norm,
        restarts=restarts,
        seed=seed,
        objective=objective,
        precision=precision,
    )
    return accuracy_under(
        model,
        dataset,
        change,
        batch_size=batch_size,
        max_images=max_images,
        title=f"PGD-{steps} {objective}",
        progress=progress,
        world=world,
    )


def pgd_attack(
    model: nn.Module,
    *,
    epsilon: float,
    steps: int = 20,
    step_size: float | None = None,
    norm: str = "linf",
    restarts: int = 1,
    seed: int = 0,
    objective: str = "cross_entropy",
    precision: str = "fp32",
) -> "PgdAttack":
    """Return the attack of :func:`robust_accuracy`; one call after another continues its stream of random starts."""
    goal = _objective(objective)
    if restarts < 1:
        raise InputError(f"restarts: expected at least 1, got {restarts}")
    if precision not in ("fp32", "bf16"):
        raise InputError(f"precision: expected 'fp32' or 'bf16', got {precision!r}")
    length = STEP_FACTOR * epsilon / max(steps, 1) if step_size is None else step_size
    generators = [torch.Generator().manual_seed(seed + restart) for restart in range(restarts)]
    autocast = torch.bfloat16 if precision == "bf16" else None
    return PgdAttack(model, epsilon, steps, length, norm, goal, generators, autocast)


@dataclass(frozen=True)
class PgdAttack:
    """PGD with restarts on one batch after another; made by :func:`pgd_attack`."""

    model: nn.Module
    epsilon: float
    steps: int
    step_size: float
    norm: str
    goal: Callable[[Tensor], Objective]
    generators: list[torch.Generator]
    autocast: torch.dtype | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return attacked images; later restarts attack only what withstood the earlier ones."""
        best, rows = images.clone(), torch.arange(len(images), device=images.device)
        for restart, start in enumerate(self._starts(images)):
            if restart:
                rows = rows[self.model(best[rows]).argmax(1) == labels[rows]]
            if len(rows):
                best[rows] = supervised_pgd(
                    self.model,
                    images[rows],
                    labels[rows],
                    epsilon=self.epsilon,
                    step_size=self.step_size,
                    steps=self.steps,
                    norm=self.norm,
                    init=start[rows],
                    objective=self.goal(labels[rows]),
                    autocast=self.autocast,
                )
        return best

    def skip(self, images: Tensor, labels: Tensor) -> None:
        """Draw the random starts of a batch that another rank attacks."""
        for _ in self._starts(images):
            pass

    def _starts(self, images: Tensor) -> Iterator[Tensor]:
        # Drawn for all images, so that a start does not depend on which of them are already fooled.
        for generator in self.generators:
            yield get_norm(self.norm).uniform(images, self.epsilon, generator)


def accuracy_under(
    model: nn.Module,
    dataset: ImageDataset,
    change: Change,
    *,
    batch_size: int = 256,
    max_images: int | None = None,
    title: str = "",
    progress: bool = False,
    world: World = ALONE,
) -> Accuracy:
    """Return the model's eval-mode accuracy on what ``change`` makes of the images.

    Of several ranks each takes every ``size``-th batch, so that no batch is another than in one process; it lets
    ``change.skip``, or ``change`` itself where it has none, pass over the others, for the sake of its random numbers.
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


def _objective(name: str) -> Callable[[Tensor], Objective]:
    objectives: dict[str, Callable[[Tensor], Objective]] = {"cross_entropy": CrossEntropy, "margin": Margin}
    if name not in objectives:
        raise InputError(f"objective: expected one of {', '.join(objectives)}, got {name!r}")
    return objectives[name]
