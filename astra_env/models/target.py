"""The target network of ASTrA: a ResNet whose every norm has a clean and an adversarial branch, and its projection."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.errors import InputError
from astra_env.models.layers import (
    BRANCHES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    BranchNorm,
    ChannelStatistics,
    Normalize,
    build,
    conv1x1,
    conv3x3,
    global_pool,
    pool_stem,
    require_choice,
    require_positive,
    stem_conv,
)


class BranchDownsample(nn.Module):
    """1x1 convolution and norm on the skip connection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv = conv1x1(inputs, outputs, stride)
        self.bn = BranchNorm(outputs, norm)

    def forward(self, x: Tensor, branch: int) -> Tensor:
        """Maps (N, inputs, H, W) -> (N, outputs, H/stride, W/stride)."""
        return self.bn(self.conv(x), branch)


class BranchBlock(nn.Module):
    """Basic residual block (He et al., 2016) with branch norms."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = BranchNorm(outputs, norm)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = BranchNorm(outputs, norm)
        changes_shape = stride != 1 or inputs != outputs
        self.downsample = BranchDownsample(inputs, outputs, stride, norm) if changes_shape else None

    def forward(self, x: Tensor, branch: int) -> Tensor:
        """Maps (N, inputs, H, W) -> (N, outputs, H/stride, W/stride)."""
        skip = x if self.downsample is None else self.downsample(x, branch)
        x = F.relu(self.bn1(self.conv1(x), branch), inplace=True)
        return F.relu(self.bn2(self.conv2(x), branch) + skip, inplace=True)


class ProjectionHead(nn.Module):
    """Linear - norm - ReLU - linear - norm - ReLU - linear - norm, with branch norms; only the first has a bias."""

    def __init__(self, inputs: int, hidden: int, outputs: int, norm: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.bn1 = BranchNorm(hidden, norm, flat=True)
        self.fc2 = nn.Linear(hidden, outputs, bias=False)
        self.bn2 = BranchNorm(outputs, norm, flat=True)
        self.fc3 = nn.Linear(outputs, outputs, bias=False)
        self.bn3 = BranchNorm(outputs, norm, flat=True)

    def forward(self, x: Tensor, branch: int) -> Tensor:
        """Embeddings (N, inputs) -> projected features (N, outputs)."""
        x = F.relu(self.bn1(self.fc1(x), branch), inplace=True)
        x = F.relu(self.bn2(self.fc2(x), branch), inplace=True)
        return self.bn3(self.fc3(x), branch)


class PlainHead(nn.Module):
    """Linear - ReLU - linear, both with a bias (RoCL); the branch makes no difference."""

    def __init__(self, inputs: int, hidden: int, outputs: int, norm: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor, branch: int) -> Tensor:
        """Embeddings (N, inputs) -> projected features (N, outputs)."""
        return self.fc2(F.relu(self.fc1(x), inplace=True))


class UnitHead(nn.Module):
    """Linear - BatchNorm - ReLU - linear to unit length (AdvCL): one BatchNorm whatever the branch, both biased."""

    def __init__(self, inputs: int, hidden: int, outputs: int, norm: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.bn1 = nn.BatchNorm1d(hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor, branch: int) -> Tensor:
        """Embeddings (N, inputs) -> projected features (N, outputs) of length 1."""
        return F.normalize(self.fc2(F.relu(self.bn1(self.fc1(x)), inplace=True)), dim=1)


HEADS: dict[str, type[ProjectionHead] | type[PlainHead] | type[UnitHead]] = {
    "mlp3": ProjectionHead,
    "mlp2": PlainHead,
    "mlp2_bn": UnitHead,
}
"""Projection heads by name, each ``head(inputs, hidden, outputs, norm)``."""


class TargetNetwork(nn.Module):
    """Encoder and projection head trained by ASTrA; its plain state dict is the official checkpoint format.

    The branch is an argument of every call, "clean" (official ``normal``) or "adv" (official ``pgd``), and never
    state: a training-mode forward changes the running statistics of the branch it names and of no other.
    """

    branches = BRANCHES

    def __init__(
        self,
        width: int,
        blocks: tuple[int, ...],
        feature_dim: int,
        hidden_dim: int,
        stem: str,
        norm: str,
        normalize: ChannelStatistics | None,
        head: str = "mlp3",
    ) -> None:
        super().__init__()
        self.stem = stem
        self.norm = norm
        self.embed_dim = width * 2 ** (len(blocks) - 1)
        self.feature_dim = feature_dim
        self.normalize = nn.Identity() if normalize is None else Normalize(*normalize)
        self.conv1 = stem_conv(width, stem)
        self.bn1 = BranchNorm(width, norm)
        self._layers = [f"layer{stage + 1}" for stage in range(len(blocks))]
        inputs = width
        for stage, (name, count) in enumerate(zip(self._layers, blocks, strict=True)):
            outputs = width * 2**stage
            layer = nn.ModuleList()
            for position in range(count):
                stride = 2 if stage > 0 and position == 0 else 1
                layer.append(BranchBlock(inputs, outputs, stride, norm))
                inputs = outputs
            self.add_module(name, layer)
        self.fc = HEADS[head](self.embed_dim, hidden_dim, feature_dim, norm)

    def forward(self, views: Tensor, branch: str = "clean") -> Tensor:
        """Views (N, 3, H, W) in [0, 1] -> projected features (N, feature_dim); raises InputError on another branch."""
        return self.project(self.embed(views, branch), branch)

    def embed(self, views: Tensor, branch: str = "clean") -> Tensor:
        """Views (N, 3, H, W) in [0, 1] -> backbone embeddings (N, embed_dim)."""
        index = _branch_index(branch)
        x = self.conv1(self.normalize(views))
        x = pool_stem(F.relu(self.bn1(x, index), inplace=True), self.stem)
        for name in self._layers:
            for block in getattr(self, name):
                x = block(x, index)
        return global_pool(x)

    def project(self, embedding: Tensor, branch: str = "clean") -> Tensor:
        """Backbone embeddings (N, embed_dim) -> projected features (N, feature_dim)."""
        return self.fc(embedding, _branch_index(branch))


def _branch_index(branch: str) -> int:
    if branch not in BRANCHES:
        raise InputError(
            f"branch: expected 'clean' or 'adv', got {branch!r}; the official 'normal' is 'clean', 'pgd' is 'adv'"
        )
    return BRANCHES.index(branch)


def target_resnet18(
    *,
    width: int = 64,
    blocks: tuple[int, ...] = (2, 2, 2, 2),
    feature_dim: int = 512,
    hidden_dim: int = 2048,
    stem: str = "cifar",
    norm: str = "branch",
    normalize: ChannelStatistics | None = (IMAGENET_MEAN, IMAGENET_STD),
    head: str = "mlp3",
    generator: torch.Generator | None = None,
) -> TargetNetwork:
    """Return ASTrA's target network: ResNet-18 with branch norms and a projection head (arXiv 2501.02296).

    Args:
        width: channels of the first stage; every later stage doubles them.
        blocks: residual blocks per stage; the number of stages follows.
        feature_dim: size of the projected features.
        hidden_dim: width of the projection's first layer (2048 for ASTrA, the embedding's 512 for ACL and DynACL).
        stem: "cifar" (3x3, stride 1) or "imagenet" (7x7, stride 2, max-pool) for images of about 96 pixels and more.
        norm: "branch" (two BatchNorms, official), "single" (one for both branches) or "group" (GroupNorm, the branch
            makes no difference).
        normalize: (mean, std) per channel applied to inputs in [0, 1], or None.
        head: "mlp3" (three linear layers, each with branch norms; ASTrA, ACL, DynACL), "mlp2" (two, without norms;
            RoCL) or "mlp2_bn" (two, with one BatchNorm between them and features of unit length; AdvCL).
        generator: source of the initial weights, on the device where the network shall live.

    Raises InputError for a value outside these choices.
    """
    require_positive("width", width)
    require_positive("blocks", *blocks)
    require_positive("feature_dim", feature_dim)
    require_positive("hidden_dim", hidden_dim)
    require_choice("stem", stem, ("cifar", "imagenet"))
    require_choice("norm", norm, ("branch", "single", "group"))
    require_choice("head", head, tuple(HEADS))
    return build(
        lambda: TargetNetwork(width, tuple(blocks), feature_dim, hidden_dim, stem, norm, normalize, head),
        generator,
        fan_out=True,
    )
