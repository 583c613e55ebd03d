"""Class-balanced parts of a labelled data set."""

import torch
from torch import Tensor

from astra_env.data.dataset import ImageDataset
from astra_env.errors import DataError


def split_validation(dataset: ImageDataset, size: int, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """Split off ``size`` validation images, every class in proportion; returns ``(train, validation)``.

    Raises:
        DataError: when the set is unlabelled, or ``size`` leaves a class without a training or validation image.
    """
    held_out = stratified_indices(dataset, size, seed)
    return dataset.subset(complement(held_out, len(dataset))), dataset.subset(held_out)


def complement(rows: Tensor, count: int) -> Tensor:
    """Return the indices below ``count`` that are not in ``rows``, int64, sorted."""
    keep = torch.ones(count, dtype=torch.bool)
    keep[rows] = False
    return keep.nonzero().flatten()


def stratified_indices(dataset: ImageDataset, size: int, seed: int) -> Tensor:
    """Return ``size`` sorted indices (int64, CPU) drawn without replacement, every class in proportion.

    Raises:
        DataError: see :func:`split_validation`.
    """
    groups = _rows_by_class(dataset)
    classes = len(groups)
    if not classes <= size <= len(dataset) - classes:
        raise DataError(
            f"validation size: expected {classes}..{len(dataset) - classes} of the {len(dataset)} images in "
            f"{dataset.name!r} (each of {classes} classes needs one on both sides), got {size}"
        )
    counts = _largest_remainder([len(rows) for rows in groups], size)
    for index, (rows, count) in enumerate(zip(groups, counts, strict=True)):
        if not 0 < count < len(rows):
            raise DataError(
                f"validation size: {size} takes {count} of the {len(rows)} images of class "
                f"{dataset.classes[index]!r}; each class needs one on both sides"
            )
    return _draw(groups, counts, seed)


def label_fraction(dataset: ImageDataset, fraction: float, seed: int) -> ImageDataset:
    """Keep ``fraction`` (in (0, 1]) of every class, rounded to whole images.

    Raises:
        DataError: when the set is unlabelled, ``fraction`` is outside (0, 1] or a class would be left empty.
    """
    return dataset.subset(_fraction_rows(dataset, fraction, seed))


def split_labelled(dataset: ImageDataset, fraction: float, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """Return (the images that :func:`label_fraction` keeps, all others); raises DataError as that does."""
    kept = _fraction_rows(dataset, fraction, seed)
    return dataset.subset(kept), dataset.subset(complement(kept, len(dataset)))


def proportional_rows(dataset: ImageDataset, count: int, seed: int) -> Tensor:
    """Return exactly ``count`` sorted rows, every class in proportion and none left out.

    Where rounding every class gives that many rows they are those of :func:`label_fraction`.

    Raises:
        DataError: when the set is unlabelled or ``count`` is smaller than the number of classes.
    """
    groups = _rows_by_class(dataset)
    if not len(groups) <= count <= len(dataset):
        raise DataError(
            f"data.max_images: expected {len(groups)}..{len(dataset)}, one of each class to all, got {count}"
        )
    sizes = [len(rows) for rows in groups]
    counts = [round(count / len(dataset) * size) for size in sizes]
    if sum(counts) != count:
        counts = _largest_remainder(sizes, count)
    while 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return _draw(groups, counts, seed)


def _fraction_rows(dataset: ImageDataset, fraction: float, seed: int) -> Tensor:
    if not 0 < fraction <= 1:
        raise DataError(f"label fraction: expected a number in (0, 1], got {fraction}")
    groups = _rows_by_class(dataset)
    counts = [round(fraction * len(rows)) for rows in groups]
    if 0 in counts:
        empty = counts.index(0)
        raise DataError(
            f"label fraction: {fraction} of the {len(groups[empty])} images of class {dataset.classes[empty]!r} "
            f"leaves none; use at least {1 / len(groups[empty]):.3g}"
        )
    return _draw(groups, counts, seed)


def _rows_by_class(dataset: ImageDataset) -> list[Tensor]:
    labels = dataset.labels.cpu()
    if bool((labels < 0).any()):
        raise DataError(
            f"data set {dataset.name!r} ({dataset.split}): {int((labels < 0).sum())} images have no label; "
            "use the 'train' or 'test' split"
        )
    groups = [(labels == index).nonzero().flatten() for index in range(len(dataset.classes))]
    for name, rows in zip(dataset.classes, groups, strict=True):
        if len(rows) == 0:
            raise DataError(f"data set {dataset.name!r} ({dataset.split}): class {name!r} has no images")
    return groups


def _largest_remainder(sizes: list[int], total: int) -> list[int]:
    """Share ``total`` in proportion to ``sizes``; leftovers go to the largest remainders, then to the first."""
    whole = [total * size // sum(sizes) for size in sizes]
    remainders = [total * size % sum(sizes) for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda index: -remainders[index])
    for index in by_remainder[: total - sum(whole)]:
        whole[index] += 1
    return whole


def _draw(groups: list[Tensor], counts: list[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    chosen = [
        rows[torch.randperm(len(rows), generator=generator)[:count]] for rows, count in zip(groups, counts, strict=True)
    ]
    return torch.cat(chosen).sort().values
