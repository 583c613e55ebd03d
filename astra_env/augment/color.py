"""Colour jitter of a whole batch with per-image factors and order, as torchvision's ColorJitter on float images.

Brightness, contrast and saturation are blends, each one 3x3 colour matrix and an offset per image, so a stage in
which different images undergo different blends is still one batched product. Only hue needs its own arithmetic.
"""

import torch
from torch import Tensor

from astra_env.augment.checks import to_device

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_GRAY_WEIGHTS = (0.2989, 0.587, 0.114)


def sample_jitter(
    count: int, strength: tuple[float, float, float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw each image's order of operations and their factors, as torchvision's ColorJitter does.

    Args:
        count: number of images.
        strength: of brightness, contrast, saturation (factor in [max(0, 1-s), 1+s]) and hue (shift in [-s, s] turns).
        generator: CPU generator.

    Returns:
        order, int64 (count, 4): the operation of every stage; factors, float32 (count, 4): by operation. On the CPU.
    """
    draws = torch.rand(2, count, 4, generator=generator)
    order = draws[0].argsort(dim=1)
    center = torch.tensor([1.0, 1.0, 1.0, 0.0])
    spread = torch.tensor(strength)
    low, high = center - spread, center + spread
    low[:HUE].clamp_(min=0)
    return order, low + (high - low) * draws[1]


def color_jitter(levels: Tensor, chosen: Tensor, order: Tensor, factors: Tensor) -> None:
    """Jitter the chosen images in place.

    Args:
        levels: float32 (N, 3, H, W), 0 to 255.
        chosen: bool (N,) on the CPU, the images to change.
        order: int64 (N, 4) on the CPU, the operation of every stage.
        factors: float32 (N, 4) on the CPU, by operation.
    """
    device = levels.device
    hue_stage = (order == HUE).int().argmax(dim=1)
    parameters = to_device(torch.cat([_blend_coefficients(order, factors).flatten(1), factors[:, HUE:]], dim=1), device)
    for stage_of_hue in range(4):
        # Images that share the stage of their hue shift meet the same two kinds of operation at every stage.
        together = torch.nonzero(chosen & (hue_stage == stage_of_hue)).squeeze(1)
        if len(together) == 0:
            continue
        index = to_device(together, device)
        blends, turns = parameters[index].split([12, 1], dim=1)
        changed = levels[index]
        for stage, coefficients in enumerate(blends.unflatten(1, (4, 3)).unbind(1)):
            changed = shift_hue(changed, turns) if stage == stage_of_hue else blend(changed, coefficients)
        levels[index] = changed


def _blend_coefficients(order: Tensor, factors: Tensor) -> Tensor:
    """How much of (image, its gray version, its mean gray) every stage mixes; (N, 4 stages, 3). Hue mixes nothing."""
    factor = factors.gather(1, order)
    rest = 1 - factor
    return torch.stack([factor, rest * (order == SATURATION), rest * (order == CONTRAST)], dim=2)


def blend(levels: Tensor, coefficients: Tensor) -> Tensor:
    """Mix every image with its gray version and its mean gray level, and clip.

    Args:
        levels: float32 (N, 3, H, W), 0 to 255.
        coefficients: (N, 3), weights of the image, of its gray version and of its mean gray level.

    Returns:
        float32 (N, 3, H, W), 0 to 255.
    """
    of_image, of_gray, of_mean = coefficients.unsqueeze(2).unbind(1)
    weights = to_device(torch.tensor(_GRAY_WEIGHTS), levels.device)
    matrix = torch.diag_embed(of_image.expand(-1, 3)) + of_gray.unsqueeze(2) * weights
    flat = levels.flatten(2)
    offset = of_mean * (flat.mean(dim=2) * weights).sum(dim=1, keepdim=True)
    with torch.autocast(levels.device.type, enabled=False):
        return torch.bmm(matrix, flat).add_(offset.unsqueeze(2)).clamp_(0, 255).view_as(levels)


def shift_hue(levels: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of every image, keeping HSV's saturation and value.

    A channel of a colour with hue h (in turns) is min + (max - min) * clip(2 - 6 d, 0, 1) with d the distance on the
    circle from h to the channel's own hue: no sextant table, no division by the value.

    Args:
        levels: float32 (N, 3, H, W), any scale.
        turns: (N, 1), fraction of a full turn.

    Returns:
        float32 (N, 3, H, W).
    """
    red, green, blue = levels.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    # Where chroma is 0 every numerator is 0 too; the floor only avoids 0 / 0.
    sextant = torch.where(
        high == red,
        green - blue,
        torch.where(high == green, blue - red, red - green),
    ).div_(chroma.clamp(min=1e-12))
    own = torch.full_like(high, 4.0).masked_fill_(high == green, 2.0).masked_fill_(high == red, 0.0)
    hue = sextant.add_(own).div_(6).add_(turns.unsqueeze(2))

    channel_hue = to_device(torch.tensor([0.0, 1 / 3, 2 / 3]), levels.device).view(1, 3, 1, 1)
    away = hue.unsqueeze(1) - channel_hue
    away = away.sub_(away.round()).abs_()
    share = away.mul_(-6).add_(2).clamp_(0, 1)
    return share.mul_(chroma.unsqueeze(1)).add_(low.unsqueeze(1))


def grayscale(levels: Tensor, chosen: Tensor) -> None:
    """Replace the chosen images (bool (N,) on the CPU) of ``levels`` (N, 3, H, W) by their gray version, in place."""
    index = to_device(torch.nonzero(chosen).squeeze(1), levels.device)
    if len(index) == 0:
        return
    weights = to_device(torch.tensor(_GRAY_WEIGHTS), levels.device).view(1, 3, 1, 1)
    levels[index] = (levels[index] * weights).sum(dim=1, keepdim=True).expand(-1, 3, -1, -1)
