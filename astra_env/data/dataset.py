"""A labelled set of images as two tensors."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from astra_env.errors import DataError

_COPY_ROWS = 4096


@dataclass(frozen=True, eq=False, repr=False)
class ImageDataset:
    """Images and labels in memory, on one device; memory-mapped when they exceed the host budget.

    Attributes:
        name: the name it was loaded by.
        split: ``pretrain``, ``train`` or ``test``.
        images: uint8 ``(N, 3, H, W)``, contiguous.
        labels: int64 ``(N,)`` on the device of ``images``; -1 marks an unlabelled image.
        classes: name of each label.
        spill: folder of the file that ``images`` is mapped from; None when the images are in memory. Subsets of a
            mapped set are written beside it, because they may not fit in memory either.
        total: images of the split when these are only the ones that were asked for; None when all are here.

    Raises:
        DataError: when shapes, types or the range of the labels do not fit together.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    spill: Path | None = None
    total: int | None = None

    def __post_init__(self) -> None:
        here = f"data set {self.name!r} ({self.split})"
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.images.shape[1] != 3:
            found = f"{self.images.dtype} {tuple(self.images.shape)}"
            raise DataError(f"{here}: expected images as uint8 (N, 3, H, W), got {found}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            found = f"{self.labels.dtype} {tuple(self.labels.shape)}"
            raise DataError(f"{here}: expected labels as int64 ({len(self.images)},), got {found}")
        if len(self.images) == 0:
            raise DataError(f"{here}: expected at least one image, got none")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < -1 or high >= len(self.classes):
            raise DataError(f"{here}: expected labels in -1..{len(self.classes) - 1}, got {low}..{high}")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape, place = tuple(self.images.shape), "mapped" if self.spill else self.images.device
        return f"ImageDataset({self.name!r}, {self.split!r}, images={shape}, classes={len(self.classes)}, {place})"

    @classmethod
    def sketch(cls, name: str, split: str, labels: Tensor, classes: tuple[str, ...]) -> "ImageDataset":
        """Return a data set with these labels (int64 ``(N,)``) and black pixels of no size, to choose rows from."""
        pixels = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
        return cls(name, split, pixels.expand(len(labels), -1, -1, -1), labels, classes)

    def gather(self, indices: Tensor, device: torch.device | str | None = None) -> Tensor:
        """Return the images at ``indices`` (int64 ``(B,)``) as uint8 ``(B, 3, H, W)`` on ``device``.

        ``device`` defaults to the device of the images. The copy to a GPU goes through pinned memory and does not wait.
        """
        home = self.images.device
        target = home if device is None else torch.device(device)
        # A non-blocking copy towards the CPU could be read before it has arrived; towards the GPU the stream orders it.
        rows = indices.to(home, non_blocking=home.type == "cuda")
        if home.type == "cpu" and target.type == "cuda":
            batch = torch.empty((len(rows), *self.images.shape[1:]), dtype=torch.uint8, pin_memory=True)
            torch.index_select(self.images, 0, rows, out=batch)
            return batch.to(target, non_blocking=True)
        return self.images.index_select(0, rows).to(target)

    def subset(self, indices: Tensor) -> "ImageDataset":
        """Return the images at ``indices`` (int64 ``(M,)``) with their labels, in that order, as a data set.

        Raises:
            DataError: when the rows of a memory-mapped set cannot be written to disk.
        """
        rows = indices.to(self.images.device)
        images = self.images.index_select(0, rows) if self.spill is None else self._mapped_rows(rows, self.spill)
        return replace(self, images=images, labels=self.labels.index_select(0, rows))

    def _mapped_rows(self, rows: Tensor, folder: Path) -> Tensor:
        shape = (len(rows), *self.images.shape[1:])
        try:
            # The nameless file disappears with the mapping, whatever ends this process.
            with tempfile.TemporaryFile(dir=folder) as file:
                for start in range(0, len(rows), _COPY_ROWS):
                    file.write(self.images.index_select(0, rows[start : start + _COPY_ROWS]).numpy().data)
                file.flush()
                return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="c", shape=shape))
        except OSError as error:
            raise DataError(f"{folder}: no room for {len(rows)} images of a subset ({error}); free some") from error
