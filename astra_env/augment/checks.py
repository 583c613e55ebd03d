"""Checks of what enters an augmentation, and the one way its random parameters reach a device."""

import torch
from torch import Tensor

from astra_env.errors import InputError


def check_images(images: Tensor, *, allow_float: bool) -> None:
    """Raise InputError unless ``images`` is (B, 3, H, W), not empty, uint8 (or floating where allowed)."""
    if images.dim() != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise InputError(f"images: expected a non-empty shape (B, 3, H, W), got {tuple(images.shape)}; reshape them")
    if images.dtype == torch.uint8 or (allow_float and images.is_floating_point()):
        return
    allowed = "torch.uint8 or a floating dtype in [0, 1]" if allow_float else "torch.uint8"
    raise InputError(f"images: expected {allowed}, got {images.dtype}; convert them first")


def check_generator(generator: torch.Generator) -> None:
    """Raise InputError unless ``generator`` lives on the CPU, where all random parameters are drawn."""
    if generator.device.type != "cpu":
        raise InputError(f"generator: expected a CPU torch.Generator, got one on {generator.device}; drop its device")


def to_device(parameters: Tensor, device: torch.device) -> Tensor:
    """Copy a small host tensor to ``device`` without making the host wait for it."""
    if device.type == "cuda":
        # Only a pinned source is copied asynchronously; the allocator keeps it alive until the copy is done.
        parameters = parameters.pin_memory()
    return parameters.to(device, non_blocking=True)
