"""ResNets with one norm per layer: supervised classifiers, and the trunk of the strategy network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.models.layers import (
    ChannelStatistics,
    Normalize,
    build,
    conv1x1,
    conv3x3,
    global_pool,
    make_norm,
    pool_stem,
    require_choice,
    require_positive,
    stem_conv,
)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip connection (He et al., 2016)."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, channels, stride)
        self.bn1 = make_norm(channels, norm)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = make_norm(channels, norm)
        self.shortcut = _shortcut(inputs, channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, inputs, H, W) -> (N, channels, H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions that end four times as wide, and a skip connection (He et al., 2016)."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        outputs = channels * self.expansion
        self.conv1 = conv1x1(inputs, channels)
        self.bn1 = make_norm(channels, norm)
        self.conv2 = conv3x3(channels, channels, stride)
        self.bn2 = make_norm(channels, norm)
        self.conv3 = conv1x1(channels, outputs)
        self.bn3 = make_norm(outputs, norm)
        self.shortcut = _shortcut(inputs, outputs, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, inputs, H, W) -> (N, 4 * channels, H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x), inplace=True)


def _shortcut(inputs: int, outputs: int, stride: int, norm: str) -> nn.Sequential:
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(conv1x1(inputs, outputs, stride), make_norm(outputs, norm))


class ResNetTrunk(nn.Module):
    """Stem, residual stages and global pooling, without a head."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        width: int,
        blocks: tuple[int, ...],
        stem: str = "cifar",
        norm: str = "batch",
        normalize: ChannelStatistics | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.embed_dim = width * 2 ** (len(blocks) - 1) * block.expansion
        self.normalize = nn.Identity() if normalize is None else Normalize(*normalize)
        self.conv1 = stem_conv(width, stem)
        self.bn1 = make_norm(width, norm)
        self._layers = [f"layer{stage + 1}" for stage in range(len(blocks))]
        inputs = width
        for stage, (name, count) in enumerate(zip(self._layers, blocks, strict=True)):
            channels = width * 2**stage
            layer = nn.Sequential()
            for position in range(count):
                layer.append(block(inputs, channels, 2 if stage > 0 and position == 0 else 1, norm))
                inputs = channels * block.expansion
            self.add_module(name, layer)

    def embed(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> pooled features (N, embed_dim)."""
        x = pool_stem(F.relu(self.bn1(self.conv1(self.normalize(images))), inplace=True), self.stem)
        for name in self._layers:
            x = getattr(self, name)(x)
        return global_pool(x)


class ResNet(ResNetTrunk):
    """A trunk with a linear classifier."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        width: int,
        blocks: tuple[int, ...],
        num_classes: int,
        stem: str = "cifar",
        normalize: ChannelStatistics | None = None,
    ) -> None:
        super().__init__(block, width, blocks, stem=stem, normalize=normalize)
        self.linear = nn.Linear(self.embed_dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> logits (N, num_classes)."""
        return self.linear(self.embed(images))


def resnet18(
    num_classes: int = 10,
    normalize: ChannelStatistics | None = None,
    width: int = 64,
    stem: str = "cifar",
    *,
    generator: torch.Generator | None = None,
) -> ResNet:
    """Return a ResNet-18 classifier (He et al., 2016).

    ``width``: channels of the first stage. ``stem``: "cifar" (3x3) or "imagenet" (7x7 stride 2, max-pool).
    ``normalize``: (mean, std) put inside, or None. Raises InputError for another stem or a size below 1.
    """
    require_positive("num_classes", num_classes)
    require_positive("width", width)
    require_choice("stem", stem, ("cifar", "imagenet"))
    return build(lambda: ResNet(BasicBlock, width, (2, 2, 2, 2), num_classes, stem, normalize), generator)


def bottleneck_resnet26(
    num_classes: int = 10,
    normalize: ChannelStatistics | None = None,
    width: int = 64,
    *,
    generator: torch.Generator | None = None,
) -> ResNet:
    """Return the network that RPAT's benchmark code calls "resnet18": Bottleneck blocks [2, 2, 2, 2], 26 layers.

    ``width``: channels inside the first stage's blocks (its output is four times as wide). ``normalize``: (mean, std)
    put inside, or None. Raises InputError for a size below 1.
    """
    require_positive("num_classes", num_classes)
    require_positive("width", width)
    return build(lambda: ResNet(Bottleneck, width, (2, 2, 2, 2), num_classes, "cifar", normalize), generator)
