"""Random resized crops of a whole batch: torchvision's sampling, PIL's antialiased filters, two batched matmuls."""

import math

import torch
from torch import Tensor

from astra_env.augment.checks import to_device

_TRIES = 10


def sample_crops(
    count: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Draw crop boxes as torchvision's RandomResizedCrop does: ten tries, then a central crop of an allowed aspect.

    Args:
        count: number of boxes.
        height: of the images, in pixels.
        width: of the images, in pixels.
        scale: range of the crop's area as a fraction of the image's, sampled uniformly.
        ratio: range of width / height, sampled log-uniformly.
        generator: CPU generator.

    Returns:
        int64 (count, 4) on the CPU: top, left, height, width in pixels.
    """
    draws = torch.rand(2, count, _TRIES, dtype=torch.float64, generator=generator)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * draws[1])
    widths = torch.round(torch.sqrt(area * aspect)).long()
    heights = torch.round(torch.sqrt(area / aspect)).long()
    valid = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = valid.int().argmax(dim=1, keepdim=True)
    found = valid.any(dim=1)
    fallback_height, fallback_width = _largest_crop(height, width, ratio)
    crop_height = torch.where(found, heights.gather(1, first).squeeze(1), fallback_height)
    crop_width = torch.where(found, widths.gather(1, first).squeeze(1), fallback_width)

    position = torch.rand(2, count, dtype=torch.float64, generator=generator)
    top = torch.where(found, (position[0] * (height - crop_height + 1)).long(), (height - fallback_height) // 2)
    left = torch.where(found, (position[1] * (width - crop_width + 1)).long(), (width - fallback_width) // 2)
    return torch.stack([top, left, crop_height, crop_width], dim=1)


def _largest_crop(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    """Height and width of the largest crop whose aspect is allowed (torchvision's fallback)."""
    if width / height < ratio[0]:
        return min(height, round(width / ratio[0])), width
    if width / height > ratio[1]:
        return height, min(width, round(height * ratio[1]))
    return height, width


def interpolation_matrix(
    start: Tensor, length: Tensor, reverse: Tensor, inputs: int, outputs: int, interpolation: str = "bicubic"
) -> Tensor:
    """Weights that resample one axis of a crop with one of PIL's antialiased filters.

    Args:
        start: float (N,), first pixel of the crop on this axis.
        length: float (N,), pixels of the crop on this axis.
        reverse: float (N,), 1 to mirror the output, 0 to leave it.
        inputs: pixels of the whole image on this axis.
        outputs: pixels wanted.
        interpolation: "bicubic" (Keys' kernel with a = -1/2) or "bilinear".

    Returns:
        float32 (N, outputs, inputs); rows sum to 1 and are 0 outside the crop.
    """
    device = start.device
    scale = (length / outputs).view(-1, 1, 1)
    stretch = scale.clamp(min=1.0)
    output = torch.arange(outputs, dtype=torch.float32, device=device).view(1, -1, 1)
    flip = reverse.view(-1, 1, 1)
    output = output + flip * (outputs - 1 - 2 * output)
    pixel = torch.arange(inputs, dtype=torch.float32, device=device).view(1, 1, -1) + 0.5 - start.view(-1, 1, 1)
    inside = (pixel > 0) & (pixel < length.view(-1, 1, 1))

    distance = (pixel / stretch - (output + 0.5) * (scale / stretch)).abs_()
    weights = (_cubic(distance) if interpolation == "bicubic" else _triangle(distance)).mul_(inside)
    return weights.div_(weights.sum(dim=2, keepdim=True))


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -1/2, without branches: u^2 (u - 1) / 2 + v^2 (1 - 2v), u = (2-d)+, v = (1-d)+."""
    outer = (2 - distance).clamp_(min=0)
    inner = distance.neg_().add_(1).clamp_(min=0)
    kernel = (outer - 1).mul_(outer).mul_(outer).mul_(0.5)
    return kernel.add_((1 - 2 * inner).mul_(inner).mul_(inner))


def _triangle(distance: Tensor) -> Tensor:
    return distance.neg_().add_(1).clamp_(min=0)


def resized_crops(images: Tensor, boxes: Tensor, mirrored: Tensor, size: int, interpolation: str = "bicubic") -> Tensor:
    """Cut V boxes out of every image, resize them to ``size`` and mirror the chosen ones, as PIL would.

    PIL filters rows before columns and keeps 8 bits in between; so does this, hence equal up to rounding ties.

    Args:
        images: uint8 (B, 3, H, W), or float of whole levels 0 to 255.
        boxes: int64 (V*B, 4) on the CPU: top, left, height, width; box r belongs to image r // V.
        mirrored: bool (V*B,) on the CPU.
        size: height and width of the result, in pixels.
        interpolation: "bicubic" or "bilinear".

    Returns:
        float32 (V*B, 3, size, size), integers from 0 to 255, on the images' device.
    """
    batch, channels, height, width = images.shape
    parameters = to_device(torch.cat([boxes, mirrored.unsqueeze(1)], dim=1).float(), images.device)
    top, left, crop_height, crop_width, reverse = parameters.unbind(1)
    # Under autocast the matmuls would keep 8 significant bits of the pixels.
    with torch.autocast(images.device.type, enabled=False):
        columns = interpolation_matrix(left, crop_width, reverse, width, size, interpolation)
        rows = interpolation_matrix(top, crop_height, torch.zeros_like(reverse), height, size, interpolation)
        levels = images.float().reshape(batch, channels * height, width)
        levels = _to_levels(torch.bmm(levels, columns.view(batch, -1, width).transpose(1, 2)))
        levels = levels.view(batch, channels, height, -1, size).permute(0, 3, 1, 2, 4)
        rows = rows.view(batch, -1, 1, size, height)
        return _to_levels(torch.matmul(rows, levels)).view(-1, channels, size, size)


def _to_levels(values: Tensor) -> Tensor:
    """Round to the 8-bit grid in place, halves upwards as PIL does."""
    return values.add_(0.5).floor_().clamp_(0, 255)
