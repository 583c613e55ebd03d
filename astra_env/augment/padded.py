"""Two weak views of every image of a batch: shifted by a few pixels and mirrored, colours untouched."""

from dataclasses import dataclass

import torch
from torch import Tensor

from astra_env.augment.checks import check_generator, check_images, to_device
from astra_env.augment.crop import resized_crops
from astra_env.augment.supervised import random_crop_flip
from astra_env.errors import InputError


@dataclass(frozen=True)
class PaddedCropAugment:
    """Two independent weak views per image: padded random crop and mirror (DeACL, Zhang et al. 2022).

    Attributes:
        image_size: height and width of the views, in pixels.
        padding: black pixels on every side before the crop, for images of 32 pixels; scaled with the image.
        flip_probability: of mirroring a view left to right.
    """

    image_size: int
    padding: int = 4
    flip_probability: float = 0.5

    @torch.no_grad()
    def __call__(
        self, images: Tensor, generator: torch.Generator, *, first: int = 0, total: int | None = None
    ) -> Tensor:
        """Make two views of every image.

        Args:
            images: uint8 (B, 3, H, W), any device.
            generator: CPU generator; the only source of randomness.
            first: 0, for a batch is never spread under these views.
            total: number of images.

        Returns:
            float32 (2B, 3, S, S) on the images' device, multiples of 1/255 in [0, 1]; rows 2k and 2k+1 show image k.

        Raises:
            InputError: wrong dtype or shape of ``images``, a generator of another device, or part of a batch.
        """
        check_images(images, allow_float=False)
        check_generator(generator)
        if first or (total or len(images)) != len(images):
            raise InputError(f"first, total: expected the whole batch of {len(images)} images, got {first}, {total}")
        count, (height, width) = 2 * len(images), images.shape[-2:]
        padding = max(1, round(self.padding * min(height, width) / 32))
        views = random_crop_flip(images.repeat_interleave(2, dim=0), generator, padding, "zero", flip=False)
        mirrored = torch.rand(count, generator=generator) < self.flip_probability
        if (height, width) == (self.image_size, self.image_size):
            return torch.where(to_device(mirrored, images.device).view(-1, 1, 1, 1), views.flip(3), views)
        boxes = torch.tensor([[0, 0, height, width]]).expand(count, -1)
        return resized_crops(views.mul(255).round_(), boxes, mirrored, self.image_size).div_(255)
