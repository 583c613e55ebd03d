"""Only the images that are wanted: which rows of a split, and the cache of these rows alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from astra_env.data.cache import SourceFile, find_cache
from astra_env.data.dataset import ImageDataset
from astra_env.data.request import Choose, ReadRequest
from astra_env.data.subsets import complement, proportional_rows, stratified_indices
from astra_env.errors import ConfigError, DataError

HOLDOUT_SEED = 3407
"""The test images of ``data.holdout`` are the same in every run and every evaluation."""


def at_most(count: int | None) -> Choose | None:
    """Return the choice of ``count`` images: every class in proportion when all are labelled, otherwise the first ones.

    Raises:
        ConfigError: for fewer than one image.
    """
    if count is None:
        return None
    if count < 1:
        raise ConfigError(f"data.max_images: expected an integer >= 1, got {count}")

    def choose(dataset: ImageDataset) -> Tensor | None:
        if count >= len(dataset):
            return None
        if bool((dataset.labels < 0).any()) or count < len(dataset.classes):
            return torch.arange(count)
        return proportional_rows(dataset, count, seed=0)

    return choose


def held_out(share: float, split: str, choose: Choose | None) -> Choose:
    """Return the choice of a seeded, class-balanced ``share`` as the test split, or of the others; then ``choose``.

    Raises:
        DataError: for a share outside (0, 1).
    """
    if not 0 < share < 1:
        raise DataError(f"data.holdout: expected a share between 0 and 1, such as 0.1, got {share:g}")

    def pick(dataset: ImageDataset) -> Tensor:
        try:
            test = stratified_indices(dataset, round(share * len(dataset)), HOLDOUT_SEED)
        except DataError as error:
            raise DataError(f"data.holdout: {share:g} of the images cannot be held out ({error}); change it") from error
        rows = test if split == "test" else complement(test, len(dataset))
        inner = choose(dataset.subset(rows)) if choose is not None else None
        return rows if inner is None else rows[inner]

    return pick


def narrowed(
    request: ReadRequest,
    folder: Path,
    stem: str,
    files: list[SourceFile],
    labels: Tensor,
    classes: Sequence[str],
) -> tuple[str, Tensor | None]:
    """Return which rows to decode and the stem of their cache; None for all, then under ``stem`` itself.

    Args:
        request: what is asked for.
        folder: what the cache belongs to.
        stem: name of the cache of all images.
        files: what all images are made from.
        labels: of all images, int64 (N,).
        classes: names of the labels.
    """
    if request.choose is None:
        return stem, None
    rows = request.choose(ImageDataset.sketch(request.name, request.split, labels, tuple(classes)))
    if rows is None or find_cache(request, folder, stem, files) is not None:
        return stem, None
    name = hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:8]
    return f"{stem}-{len(rows)}of{len(labels)}-{name}", rows


def only_chosen(dataset: ImageDataset, choose: Choose | None) -> ImageDataset:
    """Return the rows that are wanted of what a reader returned, unless it has chosen them itself."""
    if choose is None or dataset.total is not None:
        return dataset
    sketch = ImageDataset.sketch(dataset.name, dataset.split, dataset.labels.cpu(), dataset.classes)
    rows = choose(sketch)
    return dataset if rows is None else replace(dataset.subset(rows), total=len(dataset))
