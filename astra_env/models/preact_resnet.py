"""Pre-activation ResNet-18, in the usual form and in the form of RPAT's benchmark code."""

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
    require_choice,
    require_positive,
)


class PreActBlock(nn.Module):
    """Norm and ReLU before each of two convolutions (He et al., 2016b).

    The skip connection starts at ``x`` where the shape stays; with ``skip_activated`` at relu(bn1(x)) everywhere.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, skip_activated: bool = False) -> None:
        super().__init__()
        self.skip_activated = skip_activated
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        changes_shape = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(conv1x1(inputs, outputs, stride)) if changes_shape else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, inputs, H, W) -> (N, outputs, H/stride, W/stride)."""
        out = F.relu(self.bn1(x), inplace=True)
        skip = out if self.skip_activated else x
        if self.shortcut is not None:
            skip = self.shortcut(out)
        out = self.conv1(out)
        return self.conv2(F.relu(self.bn2(out), inplace=True)) + skip


class PreActResNet(nn.Module):
    """Four stages of pre-activation blocks and a linear classifier; ``benchmark`` builds RPAT's benchmark variant."""

    def __init__(self, num_classes: int, normalize: ChannelStatistics | None, width: int, benchmark: bool) -> None:
        super().__init__()
        self.embed_dim = 8 * width
        self.normalize = nn.Identity() if normalize is None else Normalize(*normalize)
        self.conv1 = conv3x3(3, width, 2 if benchmark else 1)
        self.bn1 = nn.BatchNorm2d(width) if benchmark else None
        self.layer1 = _stage(width, width, 1, benchmark)
        self.layer2 = _stage(width, 2 * width, 2, benchmark)
        self.layer3 = _stage(2 * width, 4 * width, 2, benchmark)
        self.layer4 = _stage(4 * width, 8 * width, 2, benchmark)
        self.bn = None if benchmark else nn.BatchNorm2d(8 * width)
        self.linear = nn.Linear(self.embed_dim, num_classes)

    def embed(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> pooled features (N, embed_dim)."""
        x = self.conv1(self.normalize(images))
        if self.bn1 is not None:
            x = F.relu(self.bn1(x), inplace=True)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        if self.bn is not None:
            x = F.relu(self.bn(x), inplace=True)
        return global_pool(x)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> logits (N, num_classes)."""
        return self.linear(self.embed(images))


def _stage(inputs: int, outputs: int, stride: int, benchmark: bool) -> nn.Sequential:
    return nn.Sequential(
        PreActBlock(inputs, outputs, stride, skip_activated=benchmark),
        PreActBlock(outputs, outputs, 1, skip_activated=benchmark),
    )


def preact_resnet18(
    num_classes: int = 10,
    normalize: ChannelStatistics | None = None,
    width: int = 64,
    *,
    variant: str = "standard",
    generator: torch.Generator | None = None,
) -> PreActResNet:
    """Return a pre-activation ResNet-18 classifier (He et al., 2016b), the network of RPAT's main tables.

    ``width``: channels of the first stage. ``normalize``: (mean, std) put inside, or None. ``variant``:
    "standard", or "benchmark" for what RPAT's benchmark code calls "pre_resnet18": stride 2, norm and ReLU in the stem,
    every skip connection starts after the activation, no norm before pooling; meant for images of 64 pixels.
    Raises InputError for another variant or a size below 1.
    """
    require_positive("num_classes", num_classes)
    require_positive("width", width)
    require_choice("variant", variant, ("standard", "benchmark"))
    return build(lambda: PreActResNet(num_classes, normalize, width, variant == "benchmark"), generator)
