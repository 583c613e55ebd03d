"""The augmentation of a supervised run: crop and flip, AutoAugment, Cutout, CutMix, in this order."""

from typing import Literal

import torch
from torch import Tensor

from astra_env.augment import cutmix, cutout, random_crop_flip
from rpat.config import AugmentConfig


class Augmentation:
    """Turns uint8 images and labels into the rows of a training step.

    Args:
        config: resolved settings.
        epochs: length of the run, for the schedule of AutoAugment.
        views: augmented views of every image.
        num_classes: number of classes, for CutMix.
        generator: CPU generator, the only source of randomness.
    """

    def __init__(
        self, config: AugmentConfig, *, epochs: int, views: int, num_classes: int, generator: torch.Generator
    ) -> None:
        self.config = config
        self.epochs = epochs
        self.views = views
        self.num_classes = num_classes
        self.generator = generator

    def __call__(self, images: Tensor, labels: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Vary a batch.

        Args:
            images: uint8 (B, 3, H, W).
            labels: int64 (B,).
            epoch: 0-based.

        Returns:
            float32 (V*B, 3, H, W) in [0, 1], all first views before all second ones, and labels (V*B,); with CutMix
            probabilities (V*B, C).
        """
        batches = [self._one_view(images, labels, epoch) for _ in range(self.views)]
        return torch.cat([views for views, _ in batches]), torch.cat([targets for _, targets in batches])

    def uses_autoaugment(self, epoch: int) -> bool:
        """Whether AutoAugment is on in this epoch: in ``second_half`` of 200 epochs from epoch 100, counted from 0."""
        return self.config.autoaugment == "always" or (
            self.config.autoaugment == "second_half" and 2 * epoch >= self.epochs
        )

    def _one_view(self, images: Tensor, labels: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        config, generator = self.config, self.generator
        mode: Literal["zero", "reflect"] = "reflect" if config.padding_mode == "reflect" else "zero"
        views = random_crop_flip(images, generator, padding=config.padding, padding_mode=mode, flip=config.flip)
        automatic = self.uses_autoaugment(epoch)
        if automatic:
            from rpat.autoaugment import BatchedAutoAugment

            levels = views.mul(255).round_().to(torch.uint8)
            views = BatchedAutoAugment()(levels, generator).float().div_(255)
        size = config.cutout if config.cutout is not None else automatic * (images.shape[-1] // 2)
        if size:
            views = cutout(views, generator, size)
        if config.cutmix:
            return cutmix(views, labels, generator, config.cutmix_alpha, self.num_classes)
        return views, labels
