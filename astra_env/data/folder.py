"""Folders of images: ``train/<class>/*`` and ``test/<class>/*`` or ``val/<class>/*``."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from astra_env.data.cache import SourceFile, cached_images
from astra_env.data.dataset import ImageDataset
from astra_env.data.decode import decode_to_array, is_image
from astra_env.data.request import DATASETS, ReadRequest
from astra_env.errors import DataError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".webp"}
_SYSTEM_NAMES = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}


@DATASETS.register("folder")
def read_folder(request: ReadRequest) -> ImageDataset:
    """Read one folder per class; ``test`` is ``test/`` or else ``val/``.

    Labels follow the sorted folder names. Images of different sizes need ``image_size``. Decoded once into a cache.

    Raises:
        DataError: names the file or folder that is missing, empty, damaged or not an image, and classes that differ
            between the two splits.
    """
    return read_class_folders(request, request.root)


def read_class_folders(request: ReadRequest, root: Path) -> ImageDataset:
    """Read the layout of :func:`read_folder` under ``root``, whatever name the data set was asked for by."""
    folder = _split_folder(root, request.labelled_split)
    classes = _class_names(folder)
    _check_same_classes(root, classes)
    files: list[SourceFile] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = list_images(folder / name, prefix=f"{name}/")
        files += found
        labels += [label] * len(found)
    return read_files(request, root, f"folder-{folder.name}", files, labels, classes)


def read_files(
    request: ReadRequest, root: Path, stem: str, files: list[SourceFile], labels: Sequence[int], classes: Sequence[str]
) -> ImageDataset:
    """Return ``files`` with ``labels`` as a data set, through the cache ``stem`` of ``root``."""

    def build(target: Path) -> None:
        title = f"decoding {request.name} {request.labelled_split}"
        paths = [file.path for file in files]
        decode_to_array(paths, target, request.image_size, request.workers, request.progress, title)

    images, spill = cached_images(request, root, stem, files, build)
    return ImageDataset(request.name, request.split, images, torch.tensor(labels), tuple(classes), spill)


def list_images(folder: Path, prefix: str = "") -> list[SourceFile]:
    """Return the images directly in ``folder``, sorted by name; hidden and system files are passed over.

    Raises:
        DataError: when there is none, or something in the folder is not an image.
    """
    files = []
    for entry in _visible(folder):
        if not entry.is_file():
            raise DataError(f"{entry.path}: expected an image file, found a folder or broken link")
        if os.path.splitext(entry.name)[1].lower() not in _SUFFIXES and not is_image(entry.path):
            raise DataError(f"{entry.path}: is not an image; remove it from the data set")
        state = entry.stat()
        files.append(SourceFile(entry.path, prefix + entry.name, state.st_size, state.st_mtime_ns))
    if not files:
        raise DataError(f"{folder}: expected images, found none; add some or remove the folder")
    return files


def has_class_folders(root: Path) -> bool:
    """Whether ``root`` has ``train/<class>`` folders."""
    train = root / "train"
    return train.is_dir() and any(entry.is_dir() for entry in _visible(train))


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if not _is_hidden(entry.name)]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    return sorted(seen, key=lambda entry: entry.name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def _split_folder(root: Path, split: str) -> Path:
    names = ("train",) if split == "train" else ("test", "val")
    for name in names:
        if (root / name).is_dir():
            return root / name
    expected = " or ".join(str(root / name / "<class>") for name in names)
    raise DataError(f"data.root: expected images in {expected}, no such folder; set --data.root to the data set")


def _class_names(folder: Path) -> list[str]:
    entries = _visible(folder)
    for entry in entries:
        if entry.is_file() and os.path.splitext(entry.name)[1].lower() in _SUFFIXES:
            raise DataError(f"{entry.path}: image outside a class folder; move it into {folder / '<class>'}")
    classes = [entry.name for entry in entries if entry.is_dir()]
    if not classes:
        raise DataError(f"{folder}: expected one folder of images per class, found none")
    return classes


def _check_same_classes(root: Path, classes: list[str]) -> None:
    """Raise DataError when the two splits, as far as they exist, have different classes."""
    for split in ("train", "test"):
        try:
            folder = _split_folder(root, split)
        except DataError:
            continue
        different = sorted(set(classes) ^ set(_class_names(folder)))
        if different:
            shown = ", ".join(different[:5]) + (f" and {len(different) - 5} more" if len(different) > 5 else "")
            raise DataError(f"{root}: train and {folder.name} need the same class folders; only one has {shown}")
