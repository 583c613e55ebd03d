"""The one way into a data set: by name."""

from dataclasses import replace
from pathlib import Path

import torch

from astra_env.config.paths import absolute
from astra_env.data.chosen import held_out, only_chosen
from astra_env.data.dataset import ImageDataset
from astra_env.data.request import DATASETS, SPLITS, Choose, ReadRequest, default_workers
from astra_env.errors import ConfigError, DataError


def load_dataset(
    name: str,
    split: str = "train",
    *,
    root: str | Path = "data",
    download: bool = False,
    image_size: int | None = None,
    device: torch.device | str = "cpu",
    max_device_bytes: int = 4 << 30,
    max_host_bytes: int = 8 << 30,
    workers: int | None = None,
    progress: bool = True,
    cache: str | Path | None = None,
    holdout: float | None = None,
    choose: Choose | None = None,
) -> ImageDataset:
    """Load a data set into memory.

    Args:
        name: one of ``DATASETS``, or ``module:function`` taking a ``ReadRequest`` and returning an ``ImageDataset``.
        split: ``train``, ``test`` or ``pretrain`` (STL-10's unlabelled images; elsewhere the same as ``train``).
        root: folder that holds the data.
        download: fetch missing files.
        image_size: side of the square images in pixels; None keeps the native size.
        device: where the images go if they take at most ``max_device_bytes``; otherwise they stay on the CPU.
        max_device_bytes: byte budget on ``device``.
        max_host_bytes: byte budget in main memory, beyond which decoded files stay memory-mapped.
        workers: processes that decode image files; None means one per usable core.
        progress: show a progress bar while decoding.
        cache: folder for decoded images; None for the user's cache folder.
        holdout: share of the training images that serves as the test split, for data sets without one.
        choose: the rows that are wanted; the others need not be decoded.

    Raises:
        DataError: one line naming the field, the value or the file, and the remedy.
        ConfigError: when ``device`` is CUDA and there is none.
    """
    if split not in SPLITS:
        raise DataError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if image_size is not None and image_size < 1:
        raise DataError(f"data.image_size: expected at least 1 pixel or none, got {image_size}")
    if workers is not None and workers < 1:
        raise DataError(f"workers: expected at least 1, got {workers}")
    target = torch.device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {str(device)!r} was asked for and torch sees no CUDA device; use 'cpu'")
    try:
        reader = DATASETS.get(name)
    except ConfigError as error:
        raise DataError(str(error)) from error
    if holdout is not None:
        if name in DATASETS and name != "folder":
            raise DataError(f"data.holdout: {name} has test images of its own; leave it null")
        choose = held_out(holdout, split, choose)
    request = ReadRequest(
        name=name,
        split=split if holdout is None else "train",
        root=absolute("data.root", root),
        download=download,
        image_size=image_size,
        max_host_bytes=max_host_bytes,
        workers=workers or default_workers(),
        progress=progress,
        cache=None if cache is None else absolute("data.cache", cache),
        choose=choose,
        holdout=holdout is not None,
    )
    dataset = reader(request)
    if not isinstance(dataset, ImageDataset):
        raise DataError(f"data.name: {name!r} must return an ImageDataset, it returned {type(dataset).__name__}")
    return _place(replace(only_chosen(dataset, choose), split=split), target, max_device_bytes)


def _place(dataset: ImageDataset, device: torch.device, max_bytes: int) -> ImageDataset:
    if device.type == "cpu" or dataset.images.nbytes > max_bytes:
        return dataset
    return replace(dataset, images=dataset.images.to(device), labels=dataset.labels.to(device), spill=None)
