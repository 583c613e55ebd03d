"""A small vision transformer as the target network: nothing of the method needs BatchNorm.

Layer normalisation treats every view by itself, so there is nothing to keep per branch: both branches are one network.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.errors import InputError
from astra_env.models.layers import (
    BRANCHES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ChannelStatistics,
    Normalize,
    build,
    require_positive,
)

HEAD_CHANNELS = 32
"""Channels of an attention head; narrower networks have a single head."""
EXPANSION = 4
"""How much wider the middle of a block's perceptron is."""


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_CHANNELS)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, T, C) -> (N, T, C)."""
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """Attention and a perceptron, each behind a layer norm and around a skip connection (pre-norm)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, EXPANSION * width)
        self.fc2 = nn.Linear(EXPANSION * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, T, C) -> (N, T, C)."""
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class LayerNormHead(nn.Module):
    """Linear - norm - ReLU - linear - norm - ReLU - linear - norm, as the ResNet's head but with layer norms."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.norm1 = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, outputs, bias=False)
        self.norm2 = nn.LayerNorm(outputs)
        self.fc3 = nn.Linear(outputs, outputs, bias=False)
        self.norm3 = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings (N, inputs) -> projected features (N, outputs)."""
        x = F.relu(self.norm1(self.fc1(x)))
        x = F.relu(self.norm2(self.fc2(x)))
        return self.norm3(self.fc3(x))


class TransformerTarget(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021) with the interface of the ResNet target network.

    Positions are sines and cosines of two coordinates, so that images of any size divisible by the patch fit; the
    embedding is the mean of the normalised tokens.
    """

    branches = BRANCHES
    norm = "layer"

    def __init__(
        self,
        width: int,
        depth: int,
        patch_size: int,
        feature_dim: int,
        hidden_dim: int,
        normalize: ChannelStatistics | None,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.embed_dim = width
        self.feature_dim = feature_dim
        self.normalize = nn.Identity() if normalize is None else Normalize(*normalize)
        self.patch = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.blocks = nn.ModuleList(EncoderBlock(width) for _ in range(depth))
        self.last_norm = nn.LayerNorm(width)
        self.fc = LayerNormHead(width, hidden_dim, feature_dim)

    def forward(self, views: Tensor, branch: str = "clean") -> Tensor:
        """Views (N, 3, H, W) in [0, 1] -> projected features (N, feature_dim); raises InputError on another branch."""
        return self.project(self.embed(views, branch), branch)

    def embed(self, views: Tensor, branch: str = "clean") -> Tensor:
        """Views (N, 3, H, W) in [0, 1] -> embeddings (N, embed_dim); raises InputError for sizes the patch misses."""
        _require_branch(branch)
        height, width = views.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise InputError(
                f"target.patch_size: views of {height} x {width} pixels do not divide into patches of "
                f"{self.patch_size}; choose a divisor"
            )
        x = self.patch(self.normalize(views))
        x = x + positions(x.shape[1], x.shape[2], x.shape[3], x.device).to(x.dtype)
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.last_norm(x).mean(1)

    def project(self, embedding: Tensor, branch: str = "clean") -> Tensor:
        """Embeddings (N, embed_dim) -> projected features (N, feature_dim)."""
        _require_branch(branch)
        return self.fc(embedding)


def positions(width: int, rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Return sines and cosines of both coordinates, (width, rows, columns): half the channels for each coordinate."""
    half = width // 2
    parts = [_waves(half, rows, device)[:, :, None].expand(-1, -1, columns)]
    parts.append(_waves(width - half, columns, device)[:, None, :].expand(-1, rows, -1))
    return torch.cat(parts)


def _waves(channels: int, length: int, device: torch.device | None) -> Tensor:
    pairs = (channels + 1) // 2
    frequencies = 10_000.0 ** (-torch.arange(pairs, device=device) / max(1, pairs))
    angles = frequencies[:, None] * torch.arange(length, device=device)
    return torch.cat((angles.sin(), angles.cos()))[:channels]


def target_vit(
    *,
    width: int = 192,
    depth: int = 6,
    patch_size: int = 4,
    feature_dim: int = 512,
    hidden_dim: int = 2048,
    normalize: ChannelStatistics | None = (IMAGENET_MEAN, IMAGENET_STD),
    generator: torch.Generator | None = None,
) -> TransformerTarget:
    """Return a vision transformer target network.

    Args:
        width: channels of a token; one attention head per 32.
        depth: number of blocks.
        patch_size: side of a patch in pixels; 4 for images of 32.
        feature_dim: size of the projected features.
        hidden_dim: width of the projection's first layer.
        normalize: (mean, std) per channel applied to inputs in [0, 1], or None.
        generator: source of the initial weights, on the device where the network shall live.

    Raises InputError for a value outside these choices.
    """
    for name, value in (("width", width), ("depth", depth), ("patch_size", patch_size)):
        require_positive(name, value)
    require_positive("feature_dim", feature_dim)
    require_positive("hidden_dim", hidden_dim)
    if width > HEAD_CHANNELS and width % HEAD_CHANNELS:
        raise InputError(f"width: expected a multiple of {HEAD_CHANNELS} above it, got {width}; choose one")
    return build(lambda: TransformerTarget(width, depth, patch_size, feature_dim, hidden_dim, normalize), generator)


def _require_branch(branch: str) -> None:
    if branch not in BRANCHES:
        raise InputError(f"branch: expected 'clean' or 'adv', got {branch!r}; both are the same network here")
