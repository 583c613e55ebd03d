"""Augmentation for supervised training: padded random crops with mirroring, Cutout, CutMix."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from astra_env.augment.checks import check_generator, check_images, to_device
from astra_env.errors import InputError


@torch.no_grad()
def random_crop_flip(
    images: Tensor,
    generator: torch.Generator,
    padding: int = 4,
    padding_mode: Literal["zero", "reflect"] = "zero",
    flip: bool = True,
) -> Tensor:
    """Shift every image by up to ``padding`` pixels and mirror half of them.

    Equivalent to torchvision's RandomCrop(size, padding) and RandomHorizontalFlip, one source index per pixel.

    Args:
        images: (B, 3, H, W), uint8 or floating in [0, 1], any device.
        generator: CPU generator.
        padding: pixels added on every side before cropping.
        padding_mode: "zero" or "reflect" (without repeating the border).
        flip: whether to mirror each image with probability 1/2.

    Returns:
        float32 (B, 3, H, W) in [0, 1] on the images' device.

    Raises:
        InputError: images of another dtype or shape, a padding that does not fit, or an unknown padding mode.
    """
    check_images(images, allow_float=True)
    check_generator(generator)
    batch, channels, height, width = images.shape
    if padding < 0 or (padding_mode == "reflect" and padding >= min(height, width)):
        raise InputError(f"padding: expected 0 to less than the image's {height} x {width}, got {padding}; change it")
    if padding_mode not in ("zero", "reflect"):
        raise InputError(f"padding_mode: expected zero or reflect, got {padding_mode}; choose one of them")
    shift = torch.randint(-padding, padding + 1, (2, batch), generator=generator)
    mirrored = (torch.rand(batch, generator=generator) < 0.5) & flip
    parameters = to_device(torch.cat([shift, mirrored.unsqueeze(0)]), images.device)
    rows = torch.arange(height, device=images.device) + parameters[0].unsqueeze(1)
    columns = torch.arange(width, device=images.device).expand(batch, -1)
    columns = torch.where(parameters[2].bool().unsqueeze(1), width - 1 - columns, columns) + parameters[1].unsqueeze(1)

    inside = _inside(rows, height).unsqueeze(2) & _inside(columns, width).unsqueeze(1)
    source = _reflect(rows, height).unsqueeze(2) * width + _reflect(columns, width).unsqueeze(1)
    source = source.view(batch, 1, -1).expand(-1, channels, -1)
    moved = images.flatten(2).gather(2, source).view_as(images)
    pixels = moved.float().div_(255) if images.dtype == torch.uint8 else moved.float()
    return pixels * inside.unsqueeze(1) if padding_mode == "zero" else pixels


def _inside(position: Tensor, size: int) -> Tensor:
    """Whether an integer position lies on an axis of ``size`` pixels."""
    return (position >= 0) & (position < size)


def _reflect(position: Tensor, size: int) -> Tensor:
    """Fold positions beyond either end of an axis back into it, without repeating the end pixels."""
    return (size - 1 - (size - 1 - position.abs()).abs()).clamp_(0, size - 1)


@torch.no_grad()
def cutout(images: Tensor, generator: torch.Generator, size: int) -> Tensor:
    """Blacken one square of every image (DeVries and Taylor, 2017, arXiv 1708.04552).

    The square's centre is uniform over the image, so part of the square may fall outside.

    Args:
        images: (B, 3, H, W), uint8 or floating, any device.
        generator: CPU generator.
        size: side of the square, in pixels.

    Returns:
        (B, 3, H, W), a new tensor of the images' dtype.

    Raises:
        InputError: images of another dtype or shape, or a negative size.
    """
    check_images(images, allow_float=True)
    check_generator(generator)
    if size < 0:
        raise InputError(f"size: expected at least 0 pixels, got {size}; raise it")
    batch, _, height, width = images.shape
    top = torch.randint(height, (batch,), generator=generator) - size // 2
    left = torch.randint(width, (batch,), generator=generator) - size // 2
    corner = to_device(torch.stack([top, left]), images.device).unsqueeze(2)
    hit_rows = _inside(torch.arange(height, device=images.device) - corner[0], size)
    hit_columns = _inside(torch.arange(width, device=images.device) - corner[1], size)
    hit = hit_rows.unsqueeze(2) & hit_columns.unsqueeze(1)
    return images.masked_fill(hit.unsqueeze(1), 0)


@torch.no_grad()
def cutmix(
    images: Tensor, labels: Tensor, generator: torch.Generator, alpha: float, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Paste one box of every image's partner into it and mix the labels by area (Yun et al., 2019, arXiv 1905.04899).

    As published, one lambda ~ Beta(alpha, alpha) and one box serve the whole batch; partners are a permutation.

    Args:
        images: (B, 3, H, W), uint8 or floating, any device.
        labels: int64 (B,), on the images' device.
        generator: CPU generator.
        alpha: of the Beta distribution, positive.
        num_classes: number of classes.

    Returns:
        images, a new tensor of the same shape and dtype, and soft labels, float32 (B, num_classes), rows sum to 1.

    Raises:
        InputError: images or labels of another dtype or shape, or alpha not positive.
    """
    check_images(images, allow_float=True)
    check_generator(generator)
    if not alpha > 0:
        raise InputError(f"alpha: expected a positive number, got {alpha}; raise it")
    batch, _, height, width = images.shape
    if labels.shape != (batch,) or labels.dtype != torch.int64:
        got = f"{tuple(labels.shape)} {labels.dtype}"
        raise InputError(f"labels: expected torch.int64 of shape ({batch},), got {got}; give one class per image")
    # torch samples Beta only from its global generator.
    seed = int(torch.randint(2**62, (), generator=generator))
    side = float(np.sqrt(1 - np.random.default_rng(seed).beta(alpha, alpha)))
    top, bottom = _cut(height, side, generator)
    left, right = _cut(width, side, generator)
    partner = to_device(torch.randperm(batch, generator=generator), images.device)

    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    hard = torch.zeros(batch, num_classes, device=images.device).scatter_(1, labels.unsqueeze(1), 1.0)
    return mixed, kept * hard + (1 - kept) * hard[partner]


def _cut(size: int, fraction: float, generator: torch.Generator) -> tuple[int, int]:
    """First and past-the-last pixel of a cut of ``fraction * size`` pixels about a uniform centre, clipped."""
    length = int(size * fraction)
    center = int(torch.randint(size, (), generator=generator))
    first = center - length // 2
    return max(first, 0), min(max(first + length, 0), size)
