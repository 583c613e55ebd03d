"""Accuracy as a curve: against the attack's radius, against random noise of that radius, along the attack's path."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from astra_env.attacks import frozen, get_norm
from astra_env.data import ImageDataset
from astra_env.distributed import ALONE, World
from astra_env.evaluation.accuracy import Accuracy
from astra_env.evaluation.batches import device_of, ordered_batches, require_labels, take
from astra_env.evaluation.robustness import accuracy_under, is_right, pgd_attack, robust_accuracy

RADII = tuple(step / 255 for step in range(0, 17, 2))
FRACTIONS = tuple(step / 10 for step in range(11))


@dataclass(frozen=True)
class Curve:
    """Accuracies over an axis.

    Attributes:
        axis: what ``values`` are: "epsilon" in [0, 1] pixel units, or "fraction" of the attack's path.
        values: positions on the axis.
        accuracies: one for each.
    """

    axis: str
    values: tuple[float, ...]
    accuracies: tuple[Accuracy, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "axis": self.axis,
            "values": list(self.values),
            "accuracies": [accuracy.as_dict() for accuracy in self.accuracies],
        }


def radius_curve(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    radii: Sequence[float] = RADII,
    steps: int = 20,
    norm: str = "linf",
    seed: int = 0,
    batch_size: int = 256,
    max_images: int | None = None,
    progress: bool = False,
    world: World = ALONE,
) -> Curve:
    """Return the accuracy under PGD at every radius, with steps of ``2.5 * radius / steps``: long enough for each."""
    accuracies = [
        robust_accuracy(
            model,
            dataset,
            epsilon=radius,
            steps=steps if radius > 0 else 0,
            norm=norm,
            seed=seed,
            batch_size=batch_size,
            max_images=max_images,
            world=world,
        )
        for radius in tqdm(radii, "accuracy by radius", unit="radius", disable=not progress)
    ]
    return Curve("epsilon", tuple(radii), tuple(accuracies))


def noise_curve(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    radii: Sequence[float] = RADII,
    norm: str = "linf",
    seed: int = 0,
    batch_size: int = 256,
    max_images: int | None = None,
    progress: bool = False,
    world: World = ALONE,
) -> Curve:
    """Return the accuracy under random noise on the sphere of every radius: what a blind attack of that size does.

    l-inf: every pixel moves by +-radius; l2: a uniformly random direction of length radius. Clipped to the image box.
    Every radius sees the same directions.
    """
    accuracies = []
    for radius in tqdm(radii, "accuracy by noise", unit="radius", disable=not progress):
        noise = _Noise(radius, norm, seed)
        accuracies.append(
            accuracy_under(model, dataset, noise, batch_size=batch_size, max_images=max_images, world=world)
        )
    return Curve("epsilon", tuple(radii), tuple(accuracies))


def path_curve(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    epsilon: float,
    fractions: Sequence[float] = FRACTIONS,
    steps: int = 20,
    norm: str = "linf",
    seed: int = 0,
    batch_size: int = 256,
    max_images: int | None = None,
    progress: bool = False,
) -> Curve:
    """Return the accuracy on ``x + t * (x_adv - x)`` for every fraction t of the way to PGD's adversarial image."""
    require_labels(dataset)
    part = take(dataset, max_images)
    device = device_of(model)
    attack = pgd_attack(model, epsilon=epsilon, steps=steps, norm=norm, seed=seed)
    correct = torch.zeros(len(fractions), dtype=torch.int64, device=device)
    with frozen(model):
        for images, labels in ordered_batches(part, batch_size, device, title="path", progress=progress):
            way = attack(images, labels) - images
            for index, fraction in enumerate(fractions):
                correct[index] += is_right(model, images + fraction * way, labels, len(part.classes)).sum()
    accuracies = tuple(Accuracy(int(count), len(part)) for count in correct)
    return Curve("fraction", tuple(fractions), accuracies)


class _Noise:
    """Random noise of a fixed size, drawn anew for every image from a seed."""

    def __init__(self, radius: float, norm: str, seed: int) -> None:
        self._radius = radius
        self._norm = get_norm(norm)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        normal = torch.randn(images.shape, generator=self._generator).to(images)
        return (images + self._radius * self._norm.direction(normal)).clamp(0, 1)
