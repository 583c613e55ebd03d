"""How images lie in folders: ``train/<class>/*`` and ``test/<class>/*``, class folders alone, or images without labels.

Errors name the file or folder and say what to rename or move.
"""

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from astra_env.data.cache import SourceFile
from astra_env.data.decode import is_image
from astra_env.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".webp"}
SYSTEM_NAMES = {
    "thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", "albthumb.db", "icon\r", "__macosx", "@eadir",
    "lost+found", "$recycle.bin", "system volume information",
}  # fmt: skip
"""What file systems and image viewers leave in folders."""
DOCUMENTS = {"readme", "license", "licence", "copying", "copyright", "notice", "citation", "changelog", "attribution"}
"""What data sets bring beside their images, with or without a suffix."""
SPLIT_NAMES = {
    "train": "train", "training": "train", "trn": "train", "test": "test", "tests": "test", "testing": "test",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
}  # fmt: skip
"""Names that people give to splits, in lower case, and what they are called here."""


@dataclass(frozen=True)
class Listing:
    """The images of a split in their order.

    Attributes:
        files: the images.
        labels: the class of each, -1 where there are no classes.
        classes: names of the classes.
        stem: name of the images' cache.
    """

    files: list[SourceFile]
    labels: list[int]
    classes: list[str] = field(default_factory=list)
    stem: str = "folder-all"


def list_split(root: Path, split: str, *, held_out: bool = False) -> Listing:
    """Return the images of ``root`` that belong to a split.

    Args:
        root: the data set.
        split: "train", "test", or "pretrain", which needs no labels.
        held_out: a part of the training images serves as the test split, so that no other may be there.

    Raises:
        DataError: naming what is missing, misnamed or misplaced.
    """
    folder = _split_folder(root, "test" if split == "test" else "train")
    tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if held_out and tests:
        raise DataError(f"data.holdout: {tests[0]} is there already; leave data.holdout null or remove that folder")
    if folder is None:
        if split == "test" or tests or not root.is_dir():
            raise _missing_split(root, split)
        return _without_splits(root, split, held_out)
    if split == "pretrain" and not any(entry.is_dir() for entry in visible(folder)):
        return _unlabelled(folder, "folder-train")
    classes = class_names(folder)
    _check_same_classes(root, classes)
    return _labelled(folder, classes, f"folder-{folder.name}")


def list_images(folder: Path, prefix: str = "") -> list[SourceFile]:
    """Return the images directly in ``folder``, sorted by name; hidden and system files are passed over.

    Raises:
        DataError: when there is none, or something in the folder is not an image.
    """
    files = []
    for entry in visible(folder):
        if entry.is_dir():
            raise DataError(
                f"{entry.path}: expected an image file, found a folder; move its images up into {folder}, or, to train "
                f"without labels, set --data.root {folder.parent}"
            )
        if not entry.is_file():
            raise DataError(f"{entry.path}: expected an image file, found a broken link; mend or remove it")
        if not _looks_like_image(entry):
            raise DataError(f"{entry.path}: is not an image; remove it from the data set")
        files.append(_source(entry, prefix + entry.name))
    if not files:
        raise DataError(f"{folder}: expected images, found none; add some or remove the folder")
    return files


def class_names(folder: Path) -> list[str]:
    """Return the names of the class folders; raises DataError when there is none, or an image lies beside them."""
    entries = visible(folder)
    for entry in entries:
        if entry.is_file() and _has_image_suffix(entry.name):
            raise DataError(f"{entry.path}: image outside a class folder; move it into {folder / '<class>'}")
    classes = [entry.name for entry in entries if entry.is_dir()]
    if not classes:
        raise DataError(f"{folder}: expected one folder of images per class, found none; move the images into some")
    return classes


def has_class_folders(root: Path) -> bool:
    """Whether ``root`` has ``train/<class>`` folders."""
    train = root / "train"
    return train.is_dir() and any(entry.is_dir() for entry in visible(train))


def visible(folder: Path) -> list[os.DirEntry[str]]:
    """Return what lies in a folder, sorted by name, without hidden entries and those of systems and documents."""
    try:
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if not _is_passed_over(entry.name)]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
    return sorted(seen, key=lambda entry: entry.name)


def _is_passed_over(name: str) -> bool:
    lower = name.lower()
    stem = lower.partition(".")[0]
    return name.startswith(".") or lower in SYSTEM_NAMES or (stem in DOCUMENTS and not _has_image_suffix(lower))


def _has_image_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _looks_like_image(entry: os.DirEntry[str]) -> bool:
    return _has_image_suffix(entry.name) or is_image(entry.path)


def _source(entry: os.DirEntry[str], name: str) -> SourceFile:
    state = entry.stat()
    return SourceFile(entry.path, name, state.st_size, state.st_mtime_ns)


def _split_folder(root: Path, split: str) -> Path | None:
    names = ("train",) if split == "train" else ("test", "val")
    for name in names:
        if (root / name).is_dir():
            return root / name
    for entry in visible(root) if root.is_dir() else []:
        ours = SPLIT_NAMES.get(entry.name.lower())
        if ours is not None and entry.is_dir() and ours in names and entry.name != ours:
            raise DataError(f"{entry.path}: this split is called {ours!r} here; rename it to {root / ours}")
    return None


def _missing_split(root: Path, split: str) -> DataError:
    names = ("test", "val") if split == "test" else ("train",)
    expected = " or ".join(str(root / name / "<class>") for name in names)
    advice = ", or hold out part of the training images with --data.holdout 0.1" if split == "test" else ""
    return DataError(
        f"data.root: expected images in {expected}, no such folder; set --data.root to the data set{advice}"
    )


def _labelled(folder: Path, classes: list[str], stem: str) -> Listing:
    files: list[SourceFile] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = list_images(folder / name, prefix=f"{name}/")
        files += found
        labels += [label] * len(found)
    return Listing(files, labels, classes, stem)


def _without_splits(root: Path, split: str, held_out: bool) -> Listing:
    """Return class folders as they are, or else images at any depth without labels, for pretraining only."""
    if _is_folder_of_classes(root):
        if not held_out:
            warnings.warn(
                f"data.root: {root} has class folders and no train/ and test/, so all images are for training; an "
                "evaluation needs test images: set --data.holdout 0.1, or move some to test/<class>/",
                stacklevel=2,
            )
        return _labelled(root, class_names(root), "folder-all")
    if split != "pretrain" or held_out:
        field = "data.holdout" if held_out else "data.root"
        raise DataError(
            f"{field}: the images under {root} have no labels, which this needs; put them into {root}/train/<class>/ "
            f"and {root}/test/<class>/"
        )
    return _unlabelled(root, "folder-all")


def _is_folder_of_classes(root: Path) -> bool:
    """Whether there are two folders or more, no image beside them and no folder within them."""
    entries = visible(root)
    folders = [entry for entry in entries if entry.is_dir()]
    if len(folders) < 2 or any(entry.is_file() and _has_image_suffix(entry.name) for entry in entries):
        return False
    return not any(inner.is_dir() for folder in folders for inner in visible(Path(folder.path)))


def _unlabelled(folder: Path, stem: str) -> Listing:
    files, others = _walk(folder)
    if not files:
        raise DataError(f"data.root: expected images under {folder}, found none; set --data.root to the data set")
    left = f"; {len(others)} other files were left aside, the first is {others[0]}" if others else ""
    warnings.warn(
        f"data.root: {len(files)} images under {folder} are taken without labels{left}; an evaluation needs labelled "
        "images in train/<class>/ and test/<class>/ of some --data.root",
        stacklevel=2,
    )
    return Listing(files, [-1] * len(files), [], stem)


def _walk(folder: Path) -> tuple[list[SourceFile], list[str]]:
    """Return all images at any depth, folder by folder in sorted order, and the files that are none."""
    files: list[SourceFile] = []
    others: list[str] = []
    seen: set[str] = set()  # a link may lead back to a folder above it
    waiting = [(folder, "")]
    while waiting:
        place, prefix = waiting.pop()
        real = os.path.realpath(place)
        if real in seen:
            continue
        seen.add(real)
        entries = visible(place)
        for entry in entries:
            if entry.is_file() and _looks_like_image(entry):
                files.append(_source(entry, prefix + entry.name))
            elif not entry.is_dir():
                others.append(entry.path)
        inner = [entry for entry in entries if entry.is_dir()]
        waiting += [(Path(entry.path), f"{prefix}{entry.name}/") for entry in reversed(inner)]
    return files, others


def _check_same_classes(root: Path, classes: list[str]) -> None:
    """Raise DataError when the two splits, as far as they exist, have different classes."""
    for split in ("train", "test"):
        folder = next(
            (root / n for n in (("train",) if split == "train" else ("test", "val")) if (root / n).is_dir()), None
        )
        if folder is None:
            continue
        different = sorted(set(classes) ^ set(class_names(folder)))
        if different:
            shown = ", ".join(different[:5]) + (f" and {len(different) - 5} more" if len(different) > 5 else "")
            raise DataError(
                f"{root}: train and {folder.name} need the same class folders; only one has {shown}; add or remove them"
            )
