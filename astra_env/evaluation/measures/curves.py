"""Accuracy as a curve: against the attack's radius, against random noise of that radius, along the attack's path."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from tqdm import tqdm

from astra_env.attacks import frozen, get_norm
from astra_env.data import ImageDataset
from astra_env.errors import InputError
from astra_env.evaluation.measures.accuracy import Accuracy
from astra_env.evaluation.measures.batches import Walk, device_of, ordered_batches, require_labels, take
from astra_env.evaluation.measures.parts import Remember, at_once
from astra_env.evaluation.measures.robustness import Restarts, accuracy_under, is_right, robust_accuracy
from astra_env.strategy import Attack

RADII = {
    "linf": tuple(step / 255 for step in range(0, 17, 2)),
    "l2": tuple(step / 255 for step in range(0, 257, 32)),
}
"""Radii of the curves, in [0, 1] pixel units: up to twice the papers' radius in either norm."""

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
    radii: Sequence[float] | None = None,
    steps: int = 20,
    norm: str = "linf",
    seed: int = 0,
    remember: Remember = at_once,
    **walk: Unpack[Walk],
) -> Curve:
    """Return the accuracy under PGD at every radius, with steps of ``2.5 * radius / steps``: long enough for each.

    ``radii``: default :data:`RADII` of the norm. ``remember`` keeps what was measured before an interruption.
    """
    progress = walk.pop("progress", False)

    def at(radius: float) -> Accuracy:
        attack = Attack.crossing(radius, steps if radius > 0 else 0, norm)
        return robust_accuracy(model, dataset, attack, seed=seed, **walk)

    return _by_radius(norm, radii, at, remember, "accuracy by radius", progress)


def noise_curve(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    radii: Sequence[float] | None = None,
    norm: str = "linf",
    seed: int = 0,
    remember: Remember = at_once,
    **walk: Unpack[Walk],
) -> Curve:
    """Return the accuracy under random noise on the sphere of every radius: what a blind attack of that size does.

    l-inf: every pixel moves by +-radius; l2: a uniformly random direction of length radius. Clipped to the image box.
    Every radius sees the same directions. ``radii``, ``remember``: as in :func:`radius_curve`.
    """
    progress = walk.pop("progress", False)

    def at(radius: float) -> Accuracy:
        return accuracy_under(model, dataset, _Noise(radius, norm, seed), **walk)

    return _by_radius(norm, radii, at, remember, "accuracy by noise", progress)


def path_curve(
    model: nn.Module,
    dataset: ImageDataset,
    attack: Attack,
    *,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    batch_size: int = 256,
    max_images: int | None = None,
    progress: bool = False,
) -> Curve:
    """Return the accuracy on ``x + t * (x_adv - x)`` for every fraction t of the way to PGD's adversarial image."""
    require_labels(dataset)
    part = take(dataset, max_images)
    device = device_of(model)
    change = Restarts(model, attack, seed=seed)
    correct = torch.zeros(len(fractions), dtype=torch.int64, device=device)
    with frozen(model):
        for images, labels in ordered_batches(part, batch_size, device, title="path", progress=progress):
            way = change(images, labels) - images
            for index, fraction in enumerate(fractions):
                correct[index] += is_right(model, images + fraction * way, labels, len(part.classes)).sum()
    accuracies = tuple(Accuracy(int(count), len(part)) for count in correct)
    return Curve("fraction", tuple(fractions), accuracies)


def _by_radius(
    norm: str,
    radii: Sequence[float] | None,
    at: Callable[[float], Accuracy],
    remember: Remember,
    title: str,
    progress: bool,
) -> Curve:
    get_norm(norm)  # raises for an unknown one before the table is asked
    if radii is None and norm not in RADII:
        raise InputError(f"radii: there are none by default in norm {norm!r}; give them")
    places = tuple(RADII[norm] if radii is None else radii)
    accuracies = [
        remember(f"{radius:.17g}", partial(at, radius))
        for radius in tqdm(places, title, unit="radius", disable=not progress)
    ]
    return Curve("epsilon", places, tuple(accuracies))


class _Noise:
    """Random noise of a fixed size, drawn anew for every image from a seed."""

    def __init__(self, radius: float, norm: str, seed: int) -> None:
        self._radius = radius
        self._norm = get_norm(norm)
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        normal = torch.randn(images.shape, generator=self._generator).to(images)
        return (images + self._radius * self._norm.direction(normal)).clamp(0, 1)
