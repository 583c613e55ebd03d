"""What a reader of a data set is asked for, and the registry of readers."""

import os
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from torch import Tensor

from astra_env.data.dataset import ImageDataset
from astra_env.registry import Registry

SPLITS = ("pretrain", "train", "test")

DOWNLOAD_ERRORS = (OSError, RuntimeError, HTTPException, zipfile.BadZipFile, tarfile.TarError)
"""What torchvision's download and extraction raise when the network, the server or the archive is at fault."""

Choose = Callable[[ImageDataset], Tensor | None]
"""Returns the rows that are wanted (int64, sorted), or None for all, of a data set whose labels alone count."""


@dataclass(frozen=True)
class ReadRequest:
    """One request to a reader.

    Attributes:
        name: the name of the data set.
        split: ``pretrain``, ``train`` or ``test``; readers without unlabelled images treat ``pretrain`` as ``train``.
        root: folder that holds the data.
        download: fetch missing files.
        image_size: side of the square images wanted, in pixels; None keeps the native size.
        max_host_bytes: larger sets of images stay memory-mapped.
        workers: processes or threads that decode.
        progress: show a progress bar.
        cache: folder for decoded images; None for the user's cache folder.
        choose: the rows that are wanted. A reader may return all of them; one that decodes only these says so by the
            data set's ``total``.
        holdout: whether part of the training images serves as the test split.
    """

    name: str
    split: str
    root: Path
    download: bool
    image_size: int | None
    max_host_bytes: int
    workers: int
    progress: bool
    cache: Path | None = None
    choose: Choose | None = None
    holdout: bool = False

    @property
    def labelled_split(self) -> str:
        """``train`` for ``pretrain``, otherwise the split itself."""
        return "test" if self.split == "test" else "train"


Reader = Callable[[ReadRequest], ImageDataset]
"""Returns the data set on the CPU; raises DataError."""

DATASETS: Registry[Reader] = Registry("data.name")

NATIVE_SIZES = {"digits": 16, "cifar10": 32, "cifar100": 32, "stl10": 96, "tiny_imagenet": 64}
"""Side of a data set's images in pixels, when no other is asked for."""


def default_workers() -> int:
    """Return the number of CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
