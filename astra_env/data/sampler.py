"""Batches of indices that a checkpoint can continue exactly."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from astra_env.errors import CheckpointError, DataError


class BatchSampler(Iterator[Tensor]):
    """Endless shuffled batches; the last incomplete batch of an epoch is dropped, or kept.

    The permutation of an epoch depends on ``(seed, epoch)`` alone, so the whole state is the epoch and the position
    in it.

    Args:
        num_items: images to draw from.
        batch_size: indices per batch.
        seed: any integer; equal seeds give equal batches on every machine.
        drop_last: leave out the images of an epoch that do not fill a batch; False to give them as a smaller one.

    Raises:
        DataError: when ``batch_size`` is less than 1 or more than ``num_items``.
    """

    def __init__(self, num_items: int, batch_size: int, seed: int, *, drop_last: bool = True) -> None:
        if batch_size < 1:
            raise DataError(f"learner.batch_size: expected at least 1, got {batch_size}")
        if num_items < batch_size:
            raise DataError(
                f"learner.batch_size: {num_items} images are fewer than one batch of {batch_size}; "
                f"lower --learner.batch_size to at most {num_items}, or use a larger data set"
            )
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.drop_last = drop_last
        self._epoch = 0
        self._position = 0
        self._order = self._permutation(0)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the images."""
        whole, rest = divmod(self.num_items, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __next__(self) -> Tensor:
        """Return the next int64 ``(batch_size,)`` indices, on the CPU; fewer when an incomplete batch is kept."""
        if self._position == self.steps_per_epoch:
            self._epoch, self._position = self._epoch + 1, 0
            self._order = self._permutation(self._epoch)
        start = self._position * self.batch_size
        self._position += 1
        return self._order[start : start + self.batch_size]

    def state_dict(self) -> dict[str, int]:
        """Return ``epoch`` and ``position`` (batches of that epoch already given)."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batch at which ``state`` was taken; raises CheckpointError when it cannot be ours."""
        epoch, position = state.get("epoch", -1), state.get("position", -1)
        whole = isinstance(epoch, int) and isinstance(position, int)
        if not whole or epoch < 0 or not 0 <= position <= self.steps_per_epoch:
            raise CheckpointError(
                f"sampler: expected an epoch >= 0 and a position in 0..{self.steps_per_epoch}, "
                f"got {state}; the checkpoint was written with other data or another batch size"
            )
        self._epoch, self._position = epoch, position
        self._order = self._permutation(epoch)

    def _permutation(self, epoch: int) -> Tensor:
        mixed = np.random.SeedSequence([self.seed & (2**64 - 1), epoch]).generate_state(2, np.uint32)
        # Two words joined by hand: the same number on machines of either byte order.
        generator = torch.Generator().manual_seed((int(mixed[0]) << 31) ^ int(mixed[1]))
        return torch.randperm(self.num_items, generator=generator)
