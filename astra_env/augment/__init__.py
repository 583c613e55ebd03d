"""Batched image augmentation on the images' own device, drawn from an explicit generator.

``SimCLRAugment`` makes the two views of contrastive training, ``PaddedCropAugment`` two weak ones;
``random_crop_flip``, ``cutout`` and ``cutmix`` serve supervised training. Every random number comes from a CPU
generator, so a seed gives the same augmentation on any device, and what happens to which image is known to the host
without waiting for the device.
"""

from astra_env.augment.padded import PaddedCropAugment
from astra_env.augment.simclr import SimCLRAugment
from astra_env.augment.supervised import cutmix, cutout, random_crop_flip

__all__ = ["PaddedCropAugment", "SimCLRAugment", "cutmix", "cutout", "random_crop_flip"]
