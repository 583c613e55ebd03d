"""Data sets that lie in folders as image files."""

from collections.abc import Sequence
from pathlib import Path

import torch

from astra_env.data.cache import SourceFile, cached_images
from astra_env.data.chosen import narrowed
from astra_env.data.dataset import ImageDataset
from astra_env.data.decode import decode_to_array
from astra_env.data.layout import list_split
from astra_env.data.request import DATASETS, ReadRequest


@DATASETS.register("folder")
def read_folder(request: ReadRequest) -> ImageDataset:
    """Read ``train/<class>/*`` and ``test/<class>/*`` (or ``val/``); labels follow the sorted folder names.

    Without a split, class folders are training images, and images in one folder or nested folders are taken for
    pretraining without labels. Images of different sizes need ``image_size``. Decoded once into a cache; transparency
    is laid on white, and the EXIF orientation is applied.

    Raises:
        DataError: names the file or folder that is missing, empty, damaged or not an image, and classes that differ
            between the two splits.
    """
    return read_class_folders(request, request.root)


def read_class_folders(request: ReadRequest, root: Path) -> ImageDataset:
    """Read the layouts of :func:`read_folder` under ``root``, whatever name the data set was asked for by."""
    found = list_split(root, request.split, held_out=request.holdout)
    return read_files(request, root, found.stem, found.files, found.labels, found.classes)


def read_files(
    request: ReadRequest, root: Path, stem: str, files: list[SourceFile], labels: Sequence[int], classes: Sequence[str]
) -> ImageDataset:
    """Return ``files`` with ``labels`` as a data set, through the cache ``stem`` of ``root``.

    Of the rows that the request chooses, no others are decoded, unless all of them lie in a cache already.
    """
    everything, total = torch.tensor(labels, dtype=torch.int64), None
    stem, rows = narrowed(request, root, stem, files, everything, classes)
    if rows is not None:
        files, everything, total = [files[row] for row in rows.tolist()], everything[rows], len(files)

    def build(target: Path) -> None:
        title = f"decoding {request.name} {request.labelled_split}"
        paths = [file.path for file in files]
        decode_to_array(paths, target, request.image_size, request.workers, request.progress, title)

    images, spill = cached_images(request, root, stem, files, build)
    return ImageDataset(request.name, request.split, images, everything, tuple(classes), spill, total)
