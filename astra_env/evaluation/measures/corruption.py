"""Corruption robustness: the ``.npy`` files of CIFAR-10-C and CIFAR-100-C (Hendrycks & Dietterich 2019)."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from astra_env.data import ImageDataset
from astra_env.errors import DataError
from astra_env.evaluation.measures.accuracy import Accuracy
from astra_env.evaluation.measures.batches import take
from astra_env.evaluation.measures.parts import Remember, at_once
from astra_env.evaluation.measures.robustness import clean_accuracy

STANDARD = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
SEVERITIES = 5


@dataclass(frozen=True)
class CorruptionResult:
    """Accuracy under corruptions.

    Attributes:
        standard: for each of the 15 standard corruptions the accuracies at severities 1 to 5.
        extra: the same for those of the four extra corruptions whose files are there.
    """

    standard: dict[str, tuple[Accuracy, ...]]
    extra: dict[str, tuple[Accuracy, ...]]

    @property
    def mean(self) -> float:
        """Mean accuracy over the standard corruptions and severities, 0 to 1."""
        return float(np.mean([accuracy.value for row in self.standard.values() for accuracy in row]))

    @property
    def by_severity(self) -> tuple[float, ...]:
        """Mean accuracy over the standard corruptions at severities 1 to 5."""
        return tuple(
            float(np.mean([row[index].value for row in self.standard.values()])) for index in range(SEVERITIES)
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        tables = {
            kind: {name: [accuracy.as_dict() for accuracy in row] for name, row in table.items()}
            for kind, table in (("standard", self.standard), ("extra", self.extra))
        }
        return {"mean": self.mean, "by_severity": list(self.by_severity), **tables}


def corruption_accuracy(
    model: nn.Module,
    folder: str | Path,
    classes: tuple[str, ...],
    *,
    batch_size: int = 256,
    max_images: int | None = None,
    remember: Remember = at_once,
    progress: bool = False,
) -> CorruptionResult:
    """Return the model's accuracy on every corruption at every severity.

    Args:
        model: maps images (N, 3, H, W) in [0, 1] to logits (N, K).
        folder: holds ``labels.npy`` and ``<corruption>.npy``, all 15 standard ones.
        classes: names of the labels.
        batch_size: images per forward pass.
        max_images: draw this many images of every severity; default all.
        remember: keeps what was measured before an interruption.
        progress: show a progress bar.

    Raises:
        DataError: for a missing or malformed file, before any work is done.
    """
    folder = Path(folder)
    names = check_folder(folder)
    rows = {}
    for name in tqdm(names, "corruptions", unit="corruption", disable=not progress):
        parts = _severities(read_corruption(folder, name, classes))
        rows[name] = tuple(
            remember(
                f"{name} {severity}", partial(clean_accuracy, model, take(part, max_images), batch_size=batch_size)
            )
            for severity, part in enumerate(parts, start=1)
        )
    standard = {name: rows[name] for name in STANDARD}
    return CorruptionResult(standard, {name: row for name, row in rows.items() if name not in standard})


def check_folder(folder: str | Path, size: tuple[int, ...] | None = None) -> list[str]:
    """Return the corruptions in a folder after a look at all their files.

    Raises DataError naming a bad file, or one whose images are not of ``size`` (height, width) in pixels.
    """
    folder = Path(folder)
    names = [*STANDARD, *(name for name in EXTRA if (folder / f"{name}.npy").is_file())]
    for name in names:
        images, _ = _check(folder, name)
        if size is not None and images.shape[1:3] != tuple(size):
            raise DataError(
                f"{folder / name}.npy: expected images of {size[0]}x{size[1]} pixels like the test images, got "
                f"{images.shape[1]}x{images.shape[2]}; measure corruptions with --data.image_size {images.shape[1]}"
            )
    return names


def read_corruption(folder: str | Path, name: str, classes: tuple[str, ...]) -> ImageDataset:
    """Read one corruption, images (5N, 3, H, W), severity 1 first; raises DataError naming the file."""
    images, labels = _check(Path(folder), name)
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return ImageDataset(name, "test", pixels, torch.from_numpy(labels.astype(np.int64)), classes)


def _check(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the mapped images (5N, H, W, 3) and the labels (5N,) after looking at their shapes and types."""
    images, labels = _load(folder / f"{name}.npy"), _load(folder / "labels.npy")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or len(images) % SEVERITIES:
        raise DataError(
            f"{folder / name}.npy: expected uint8 (5N, H, W, 3), got {images.dtype} {images.shape}; fetch it again"
        )
    if labels.ndim == 1 and len(labels) * SEVERITIES == len(images):
        labels = np.tile(labels, SEVERITIES)
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise DataError(
            f"{folder / 'labels.npy'}: expected {len(images)} integer labels as {name}.npy has images, got "
            f"{labels.dtype} {labels.shape}; both files must come from one release"
        )
    return images, labels


def _severities(dataset: ImageDataset) -> list[ImageDataset]:
    return [dataset.subset(rows) for rows in torch.arange(len(dataset)).chunk(SEVERITIES)]


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: missing; point --corruptions at the unpacked folder of CIFAR-10-C or CIFAR-100-C"
        ) from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy file ({error}); fetch it again") from error
