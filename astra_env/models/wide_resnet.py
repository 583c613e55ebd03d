"""Wide residual networks (Zagoruyko and Komodakis, 2016), in the form TRADES made usual for robust training."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.errors import InputError
from astra_env.models.layers import ChannelStatistics, Normalize, build, conv1x1, conv3x3, global_pool, require_positive

STEM_CHANNELS = 16


class WideBlock(nn.Module):
    """Pre-activation block whose first activation feeds the skip connection too where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.convShortcut = None if inputs == outputs else conv1x1(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, inputs, H, W) -> (N, outputs, H/stride, W/stride)."""
        out = F.relu(self.bn1(x), inplace=True)
        skip = x if self.convShortcut is None else self.convShortcut(out)
        out = F.relu(self.bn2(self.conv1(out)), inplace=True)
        return self.conv2(out) + skip


class WideStage(nn.Module):
    """A run of blocks, named as in the official checkpoints."""

    def __init__(self, count: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = WideBlock(inputs, outputs, stride)
        self.layer = nn.Sequential(first, *(WideBlock(outputs, outputs, 1) for _ in range(count - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, inputs, H, W) -> (N, outputs, H/stride, W/stride)."""
        return self.layer(x)


class WideResNet(nn.Module):
    """Three stages of wide blocks and a linear classifier; ``channels`` is the first stage's."""

    def __init__(self, depth: int, channels: int, num_classes: int, normalize: ChannelStatistics | None) -> None:
        super().__init__()
        count = (depth - 4) // 6
        self.embed_dim = 4 * channels
        self.normalize = nn.Identity() if normalize is None else Normalize(*normalize)
        self.conv1 = conv3x3(3, STEM_CHANNELS)
        self.block1 = WideStage(count, STEM_CHANNELS, channels, 1)
        self.block2 = WideStage(count, channels, 2 * channels, 2)
        self.block3 = WideStage(count, 2 * channels, 4 * channels, 2)
        self.bn1 = nn.BatchNorm2d(self.embed_dim)
        self.linear = nn.Linear(self.embed_dim, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> pooled features (N, embed_dim)."""
        x = self.block3(self.block2(self.block1(self.conv1(self.normalize(images)))))
        return global_pool(F.relu(self.bn1(x), inplace=True))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> logits (N, num_classes)."""
        return self.linear(self.embed(images))


def wide_resnet(
    depth: int,
    width: int,
    num_classes: int = 10,
    normalize: ChannelStatistics | None = None,
    *,
    generator: torch.Generator | None = None,
) -> WideResNet:
    """Return the WideResNet-``depth``-``width`` classifier, for example (28, 10) or (34, 10).

    ``width``: widening factor, the first stage has 16 * width channels. ``normalize``: (mean, std) put inside, or None.
    Raises InputError unless depth is 6n + 4 with n >= 1 and every size is at least 1.
    """
    require_positive("width", width)
    return wide_resnet_channels(depth, STEM_CHANNELS * width, num_classes, normalize, generator=generator)


def wide_resnet_channels(
    depth: int,
    channels: int,
    num_classes: int = 10,
    normalize: ChannelStatistics | None = None,
    *,
    generator: torch.Generator | None = None,
) -> WideResNet:
    """Return a WideResNet by the channels of its first stage, so that narrow ones can be built; else as above."""
    require_positive("num_classes", num_classes)
    require_positive("channels", channels)
    if depth < 10 or depth % 6 != 4:
        raise InputError(f"depth: expected 6n + 4 with n >= 1, got {depth!r}; use 10, 16, 22, 28, 34, ...")
    return build(lambda: WideResNet(depth, channels, num_classes, normalize), generator, fan_out=True)
