"""The minibatches of a contrastive training: which images, seen through which views."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from astra_env.config.schema import ExperimentConfig
from astra_env.data import BatchSampler, ImageDataset
from astra_env.distributed import World
from astra_env.objectives import Batch
from astra_env.randomness import derive_seed, generator


class Minibatches:
    """Draws minibatches one by one; each stays the same until it is :meth:`used`.

    Args:
        config: the run's configuration.
        dataset: the images.
        augment: maps a step (0-based) to its augmentation.
        device: where views are made.
        order: memory order of the views.
        world: the ranks; each makes the views of its own part of every minibatch.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        dataset: ImageDataset,
        augment: Callable[[int], Callable[..., Tensor]],
        device: torch.device,
        order: torch.memory_format,
        world: World,
    ) -> None:
        options = config.learner
        seed = derive_seed(config.seed, "batches")
        self.dataset = dataset
        self.sampler = BatchSampler(len(dataset), options.batch_size, seed, drop_last=options.drop_last)
        self.generator = generator(config.seed, "views")
        self._augment = augment
        self._device = device
        self._order = order
        self._world = world
        self._next: Batch | None = None
        self._before: dict[str, Any] = {}

    def next(self, step: int) -> Batch:
        """Return the minibatch of a step (0-based), drawn at the first call."""
        if self._next is None:
            self._before = {"sampler": self.sampler.state_dict(), "view_generator": self.generator.get_state()}
            indices = next(self.sampler)
            images = self.dataset.gather(self._world.own(indices), self._device)
            total = self._world.size * len(images)
            first = self._world.share(total).start
            views = self._augment(step)(images, self.generator, first=first, total=total)
            self._next = Batch(views.contiguous(memory_format=self._order), indices, step)
        return self._next

    def used(self) -> None:
        """Draw another one next time."""
        self._next = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state from before the minibatch that waits to be used, if one does."""
        if self._next is not None:
            return self._before
        return {"sampler": self.sampler.state_dict(), "view_generator": self.generator.get_state()}
