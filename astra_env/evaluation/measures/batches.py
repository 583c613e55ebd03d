"""Walks over a labelled data set: batches as float images on the model's device."""

from collections.abc import Iterator
from typing import TypedDict

import torch
from torch import Tensor, nn
from tqdm import tqdm

from astra_env.augment import random_crop_flip
from astra_env.data import ImageDataset
from astra_env.distributed import World
from astra_env.errors import DataError, InputError


class Walk(TypedDict, total=False):
    """How a measurement goes through its images; every measure takes these by keyword.

    Attributes:
        batch_size: images per forward pass or attacked at once; default 256. The result does not depend on it, up to
            rounding.
        max_images: draw this many images; default all.
        progress: show a progress bar.
        world: the processes that share the batches out among them; each then knows the accuracy on all images, and it
            is what one process finds.
    """

    batch_size: int
    max_images: int | None
    progress: bool
    world: World


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's tensors live; the CPU for a model without any."""
    tensors = [*model.parameters(), *model.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")


def to_unit(images: Tensor) -> Tensor:
    """Images uint8 (N, 3, H, W) -> float32 in [0, 1]."""
    return images.float().div_(255)


def ordered_batches(
    dataset: ImageDataset, batch_size: int, device: torch.device, *, title: str = "", progress: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images float32 (n, 3, H, W) in [0, 1], labels (n,)) in the data set's order."""
    _check_batch_size(batch_size)
    starts = range(0, len(dataset), batch_size)
    for start in tqdm(starts, desc=title, unit="batch", disable=not progress, leave=False):
        rows = torch.arange(start, min(start + batch_size, len(dataset)))
        yield to_unit(dataset.gather(rows, device)), dataset.labels[rows.to(dataset.labels.device)].to(device)


def shuffled_batches(
    dataset: ImageDataset,
    batch_size: int,
    device: torch.device,
    generator: torch.Generator,
    *,
    augment: bool,
    drop_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch in the order of ``generator``; ``augment``: crop (padding 4) and flip.

    The last batch is shorter; ``drop_last`` leaves it out, unless it is the only one.
    """
    _check_batch_size(batch_size)
    order = torch.randperm(len(dataset), generator=generator)
    for rows in order[: used_images(len(dataset), batch_size, drop_last)].split(batch_size):
        images = _training_images(dataset, rows, device, generator, augment)
        yield images, dataset.labels[rows.to(dataset.labels.device)].to(device)


def used_images(total: int, batch_size: int, drop_last: bool) -> int:
    """Return how many of ``total`` images an epoch of :func:`shuffled_batches` shows."""
    return total - total % batch_size if drop_last and total >= batch_size else total


def paired_batches(
    labelled: ImageDataset,
    others: ImageDataset,
    steps: int,
    device: torch.device,
    generator: torch.Generator,
    *,
    augment: bool,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield one epoch over two data sets at once, in ``steps`` batches that each hold an equal share of both.

    Yields (images float32 (n, 3, H, W) in [0, 1], rows of ``labelled`` (k,), rows of ``others`` (n - k,)): the first k
    images are labelled ones. ``augment``: crop (padding 4) and flip.
    """
    orders = [torch.randperm(len(part), generator=generator).tensor_split(steps) for part in (labelled, others)]
    for known, unknown in zip(*orders, strict=True):
        pairs = ((labelled, known), (others, unknown))
        images = [_training_images(part, rows, device, generator, augment) for part, rows in pairs]
        yield torch.cat(images), known, unknown


def _training_images(
    dataset: ImageDataset, rows: Tensor, device: torch.device, generator: torch.Generator, augment: bool
) -> Tensor:
    images = dataset.gather(rows, device)
    return random_crop_flip(images, generator) if augment else to_unit(images)


def take(dataset: ImageDataset, max_images: int | None, seed: int = 0) -> ImageDataset:
    """Return at most ``max_images`` images, drawn without replacement from ``seed`` and kept in their order.

    They are drawn, not the first, because many data sets are sorted by class. Raises InputError below 1.
    """
    if max_images is None or max_images >= len(dataset):
        return dataset
    if max_images < 1:
        raise InputError(f"max_images: expected at least 1 or none, got {max_images}")
    generator = torch.Generator().manual_seed(seed)
    return dataset.subset(torch.randperm(len(dataset), generator=generator)[:max_images].sort().values)


def require_labels(dataset: ImageDataset) -> None:
    """Raise DataError when an image has no label."""
    missing = int((dataset.labels < 0).sum())
    if missing:
        raise DataError(
            f"data set {dataset.name!r} ({dataset.split}): {missing} images have no label; use 'train' or 'test'"
        )


def require_alike(train: ImageDataset, test: ImageDataset) -> None:
    """Raise DataError when two data sets differ in their number of classes or the size of their images."""
    if len(train.classes) != len(test.classes):
        raise DataError(
            f"data set {test.name!r} ({test.split}): expected the {len(train.classes)} classes of the training "
            f"images, got {len(test.classes)}; evaluate on a data set with the same classes"
        )
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"data set {test.name!r} ({test.split}): expected images {tuple(train.images.shape[1:])} as in training, "
            f"got {tuple(test.images.shape[1:])}; set one --data.image_size for both"
        )


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, got {batch_size}")
