"""Tiny ImageNet in the layout of its original archive, without moving a file."""

import os
import shutil
from pathlib import Path

from astra_env.data.cache import SourceFile
from astra_env.data.dataset import ImageDataset
from astra_env.data.folder import read_files
from astra_env.data.layout import list_images
from astra_env.data.request import DATASETS, DOWNLOAD_ERRORS, ReadRequest
from astra_env.errors import DataError

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
FOLDER = "tiny-imagenet-200"


@DATASETS.register("tiny_imagenet")
def read_tiny_imagenet(request: ReadRequest) -> ImageDataset:
    """Read 100,000 training or 10,000 ``test`` images (the archive's ``val``: its ``test`` has no labels), 64x64.

    ``root`` is the folder ``tiny-imagenet-200`` or the one that holds it. Classes are WordNet ids in sorted order.

    Raises:
        DataError: names what is missing, damaged or inconsistent.
    """
    base = _base(request)
    classes = sorted(_lines(base / "wnids.txt"))
    files, labels = _val(base, classes) if request.split == "test" else _train(base, classes)
    return read_files(request, request.root, f"tiny_imagenet-{request.labelled_split}", files, labels, classes)


def _base(request: ReadRequest) -> Path:
    for base in (request.root / FOLDER, request.root):
        if (base / "wnids.txt").is_file():
            return base
    if not request.download:
        raise DataError(
            f"data.root: tiny_imagenet is not in {request.root / FOLDER} (no wnids.txt); "
            "fetch it with --data.download true"
        )
    _download(request.root)
    return request.root / FOLDER


def _download(root: Path) -> None:
    """Fetch and unpack the archive; it appears under its name only when it is whole."""
    from torchvision.datasets.utils import download_and_extract_archive

    part = root / f".{FOLDER}.part"
    try:
        download_and_extract_archive(URL, str(root), extract_root=str(part), filename=f"{FOLDER}.zip", md5=MD5)
        (part / FOLDER).replace(root / FOLDER)
    except DOWNLOAD_ERRORS as error:
        raise DataError(f"data.download: cannot fetch {URL} into {root} ({error}); retry or unpack it there") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _train(base: Path, classes: list[str]) -> tuple[list[SourceFile], list[int]]:
    files: list[SourceFile] = []
    labels: list[int] = []
    for label, wnid in enumerate(classes):
        found = list_images(base / "train" / wnid / "images", prefix=f"{wnid}/")
        files += found
        labels += [label] * len(found)
    return files, labels


def _val(base: Path, classes: list[str]) -> tuple[list[SourceFile], list[int]]:
    notes = base / "val" / "val_annotations.txt"
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    annotated: dict[str, int] = {}
    for line in _lines(notes):
        name, wnid, *_ = [*line.split("\t"), "", ""]
        if wnid not in label_of:
            raise DataError(f"{notes}: expected '<image><tab><wnid of wnids.txt>...', got {line!r}")
        annotated[name] = label_of[wnid]
    files = list_images(base / "val" / "images")
    different = sorted(annotated.keys() ^ {os.path.basename(file.path) for file in files})
    if different:
        raise DataError(f"{base / 'val'}: image and annotation do not match for {different[0]}; unpack it again")
    return files, [annotated[file.name] for file in files]


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); unpack the archive of tiny_imagenet again") from error
    if not lines:
        raise DataError(f"{file}: is empty; unpack the archive of tiny_imagenet again")
    return lines
