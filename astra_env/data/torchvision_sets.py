"""CIFAR-10, CIFAR-100 and STL-10 through torchvision."""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from astra_env.data.cache import SourceFile, begin_array, cached_images
from astra_env.data.chosen import narrowed
from astra_env.data.dataset import ImageDataset
from astra_env.data.folder import read_class_folders
from astra_env.data.layout import has_class_folders
from astra_env.data.request import DATASETS, DOWNLOAD_ERRORS, ReadRequest
from astra_env.errors import DataError

_CHUNK = 1000


@DATASETS.register("cifar10")
def read_cifar10(request: ReadRequest) -> ImageDataset:
    """Read CIFAR-10, 50,000 training and 10,000 test images of 32x32, labels in the official order.

    Takes torchvision's files, or else ``train/<class>/*`` and ``test/<class>/*``, in ``root`` or ``root/cifar10``.
    """
    from torchvision.datasets import CIFAR10

    return _read_cifar(request, CIFAR10, 10)


@DATASETS.register("cifar100")
def read_cifar100(request: ReadRequest) -> ImageDataset:
    """Read CIFAR-100 with its 100 fine labels; layouts as for :func:`read_cifar10`."""
    from torchvision.datasets import CIFAR100

    return _read_cifar(request, CIFAR100, 100)


@DATASETS.register("stl10")
def read_stl10(request: ReadRequest) -> ImageDataset:
    """Read STL-10, 96x96: 5,000 training, 8,000 test, and for ``pretrain`` the 100,000 unlabelled images (label -1)."""
    from torchvision.datasets import STL10

    source: Any = STL10
    root = _holder(request, source)
    base = root / source.base_folder
    stem = {"pretrain": "unlabeled", "train": "train", "test": "test"}[request.split]
    needed = ["class_names.txt", f"{stem}_X.bin"] + ([] if request.split == "pretrain" else [f"{stem}_y.bin"])
    missing = [base / name for name in needed if not (base / name).is_file()]
    if missing and not request.download:
        raise _missing(request, missing[0])
    if missing:
        _fetch(source, root)

    def stored() -> np.ndarray:
        # The file stores each plane column by column.
        return np.memmap(base / f"{stem}_X.bin", dtype=np.uint8, mode="r").reshape(-1, 3, 96, 96).swapaxes(2, 3)

    def build(target: Path) -> None:
        if request.download and not missing:
            _fetch(source, root)
        _check_files(request, source, root, only=needed)
        _write_images(stored() if rows is None else stored()[rows.numpy()], target, request)

    files, total = _source_files(base, needed), None
    count = (base / f"{stem}_X.bin").stat().st_size // (3 * 96 * 96)
    labels = torch.full((count,), -1)
    if request.split != "pretrain":
        labels = torch.from_numpy(np.fromfile(base / f"{stem}_y.bin", dtype=np.uint8)).long() - 1
    classes = tuple((base / "class_names.txt").read_text().split())
    name, rows = narrowed(request, root, f"stl10-{request.split}", files, labels, classes)
    if rows is not None:
        labels, total = labels[rows], len(labels)
    images, spill = cached_images(request, root, name, files, build)
    return ImageDataset("stl10", request.split, images, labels, classes, spill, total)


def _read_cifar(request: ReadRequest, source: Any, num_classes: int) -> ImageDataset:
    root = _holder(request, source)
    if not (root / source.base_folder).exists() and not request.download:
        for place in (request.root, request.root / request.name):
            if has_class_folders(place):
                return _cifar_folders(request, place, num_classes)
        raise _missing(request, root / source.base_folder)
    if request.download:
        _fetch(source, root)
    loaded = _torchvision(request, source, root, train=request.split != "test")
    stored = loaded.data.transpose(0, 3, 1, 2)
    labels, total = torch.tensor(loaded.targets), None
    if request.image_size in (None, stored.shape[-1]):
        images, spill = torch.from_numpy(np.ascontiguousarray(stored)), None
    else:
        files = _source_files(root / source.base_folder, [name for name, _ in source.train_list + source.test_list])
        stem = f"{request.name}-{request.labelled_split}"
        stem, rows = narrowed(request, root, stem, files, labels, loaded.classes)
        if rows is not None:
            stored, labels, total = stored[rows.numpy()], labels[rows], len(labels)
        images, spill = cached_images(request, root, stem, files, lambda target: _write_images(stored, target, request))
    return ImageDataset(request.name, request.split, images, labels, tuple(loaded.classes), spill, total)


def _cifar_folders(request: ReadRequest, place: Path, num_classes: int) -> ImageDataset:
    dataset = read_class_folders(request, place)
    if len(dataset.classes) != num_classes:
        raise DataError(
            f"{place}: expected the {num_classes} classes of {request.name}, found {len(dataset.classes)}; "
            "read other images with --data.name folder"
        )
    return dataset


def _holder(request: ReadRequest, source: Any) -> Path:
    """Return ``root/<name>`` when torchvision's folder is there, otherwise ``root``."""
    nested = request.root / request.name
    return nested if (nested / source.base_folder).is_dir() else request.root


def _torchvision(request: ReadRequest, source: Any, root: Path, **arguments: Any) -> Any:
    try:
        return source(str(root), **arguments)
    except DOWNLOAD_ERRORS as error:
        _check_files(request, source, root)
        raise DataError(f"{root}: torchvision cannot read {request.name} ({error})") from error


def _fetch(source: Any, root: Path) -> None:
    """Download and unpack torchvision's archive unless its files are there.

    Unpacked here, because not every torchvision keeps an archive's members inside the folder; the checksum is no
    protection against an archive that was made to have the expected one.
    """
    from torchvision.datasets.utils import check_integrity, download_url

    base = root / source.base_folder
    if all(check_integrity(str(base / name), md5) for name, md5 in [*source.train_list, *source.test_list]):
        return
    try:
        download_url(source.url, str(root), source.filename, source.tgz_md5)
        with tarfile.open(root / source.filename) as archive:
            archive.extractall(root, filter="data")
    except DOWNLOAD_ERRORS as error:
        raise DataError(f"data.download: cannot fetch {source.url} into {root} ({error}); retry later") from error


def _check_files(request: ReadRequest, source: Any, root: Path, only: list[str] | None = None) -> None:
    """Raise DataError for the first of torchvision's files (all, or those named) that is missing or damaged."""
    from torchvision.datasets.utils import check_integrity

    listed = [*source.train_list, *source.test_list]
    if hasattr(source, "meta"):
        listed.append([source.meta["filename"], source.meta["md5"]])
    for name, md5 in listed:
        path = root / source.base_folder / name
        if only is not None and name not in only:
            continue
        if not path.is_file():
            raise _missing(request, path)
        if not check_integrity(str(path), md5):
            raise DataError(f"{path}: damaged (its checksum differs); fetch it again with --data.download true")


def _missing(request: ReadRequest, path: Path) -> DataError:
    return DataError(f"data.root: {request.name} is not there ({path} is missing); fetch it with --data.download true")


def _source_files(base: Path, names: list[str]) -> list[SourceFile]:
    states = [(base / name).stat() for name in names]
    return [
        SourceFile(str(base / name), name, state.st_size, state.st_mtime_ns)
        for name, state in zip(names, states, strict=True)
    ]


def _write_images(stored: np.ndarray, target: Path, request: ReadRequest) -> None:
    """Write uint8 ``(N, 3, H, W)`` images, resized when the request says so, into a ``.npy`` file, a few at a time."""
    side = request.image_size or stored.shape[-1]
    start = begin_array(target, (len(stored), 3, side, side))
    with target.open("r+b") as out, tqdm(total=len(stored), unit="image", disable=not request.progress) as bar:
        bar.set_description(f"converting {request.name} {request.split}")
        out.seek(start)
        for first in range(0, len(stored), _CHUNK):
            images = torch.from_numpy(np.ascontiguousarray(stored[first : first + _CHUNK]))
            out.write((images if side == images.shape[-1] else _resize(images, side)).numpy().tobytes())
            bar.update(len(images))


def _resize(images: Tensor, side: int) -> Tensor:
    """Resize uint8 ``(N, 3, H, W)`` to ``(N, 3, side, side)``, bicubic with antialiasing."""
    scaled = functional.interpolate(images.float(), size=(side, side), mode="bicubic", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8)
