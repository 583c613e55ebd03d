"""One branch of a target network as a plain ResNet, equal in eval mode to the last bit it can be."""

import torch
from torch import Tensor, nn

from astra_env.errors import InputError
from astra_env.models import Target
from astra_env.models.layers import ChannelStatistics, Normalize
from astra_env.models.resnet import BasicBlock, Bottleneck, ResNet, ResNetTrunk
from astra_env.models.target import TargetNetwork


class PlainEncoder(ResNetTrunk):
    """A ResNet without a head: images (N, 3, H, W) in [0, 1] -> embeddings (N, embed_dim)."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled features."""
        return self.embed(images)

    @classmethod
    def of(cls, network: ResNetTrunk) -> "PlainEncoder":
        """Return a ResNet's trunk without its head, as a copy in eval mode."""
        plain = cls(*_sizes(network), "batch", statistics_of(network))
        plain.load_state_dict({n: t for n, t in network.state_dict().items() if not n.startswith("linear.")})
        return plain.eval()


class BranchEncoder(nn.Module):
    """A target network seen through one branch: images (N, 3, H, W) in [0, 1] -> embeddings (N, embed_dim)."""

    def __init__(self, target: Target, branch: str) -> None:
        super().__init__()
        self.target = target
        self.branch = branch

    def forward(self, images: Tensor) -> Tensor:
        """Return the target's embeddings of the branch."""
        return self.target.embed(images, self.branch)


def fold_branch(target: TargetNetwork, branch: str = "adv") -> PlainEncoder:
    """Return the encoder (no projection head) with one branch's norms as a plain ResNet in eval mode.

    The normalisation of the input stays inside: with a padded first convolution it cannot be folded into weights.

    Raises:
        InputError: for another branch, or GroupNorms, which torchvision's and timm's ResNets do not have.
    """
    if branch not in target.branches:
        raise InputError(f"branch: expected one of {', '.join(target.branches)}, got {branch!r}")
    if target.norm == "group":
        raise InputError(
            "export: a target network with norm 'group' has no torchvision or timm form; export it as onnx instead"
        )
    index = target.branches.index(branch) if target.norm == "branch" else 0
    state = _plain_names(target.state_dict(), index)
    blocks = tuple(len(getattr(target, f"layer{stage + 1}")) for stage in range(_stages(target)))
    width = target.conv1.out_channels
    plain = PlainEncoder(BasicBlock, width, blocks, target.stem, "batch", statistics_of(target))
    plain.load_state_dict(state)
    return plain.eval()


def plain_classifier(encoder: PlainEncoder, head: nn.Linear) -> ResNet:
    """Return the encoder with a linear head (embed_dim -> classes) as one classifier in eval mode.

    This is the form RobustBench asks for: images in [0, 1] in, normalisation inside, logits out.
    Raises InputError when the head does not fit the embeddings.
    """
    if head.in_features != encoder.embed_dim:
        raise InputError(
            f"head: expected {encoder.embed_dim} inputs, got {head.in_features}; give the head trained on this encoder"
        )
    block, width, blocks, stem = _sizes(encoder)
    network = ResNet(block, width, blocks, head.out_features, stem, statistics_of(encoder))
    network.load_state_dict({**encoder.state_dict(), "linear.weight": head.weight, "linear.bias": head.bias})
    return network.eval()


def statistics_of(network: nn.Module) -> ChannelStatistics | None:
    """Return (mean, std) of the normalisation inside a network, or None."""
    inside = getattr(network, "normalize", None)
    if not isinstance(inside, Normalize):
        return None
    return tuple(inside.mean.tolist()), tuple(inside.std.tolist())


def _sizes(network: ResNetTrunk) -> tuple[type[BasicBlock] | type[Bottleneck], int, tuple[int, ...], str]:
    bottleneck = any(isinstance(module, Bottleneck) for module in network.modules())
    blocks = tuple(len(getattr(network, f"layer{stage + 1}")) for stage in range(_stages(network)))
    return Bottleneck if bottleneck else BasicBlock, network.conv1.out_channels, blocks, network.stem


def _stages(network: nn.Module) -> int:
    return sum(name.startswith("layer") for name, _ in network.named_children())


def _plain_names(state: dict[str, Tensor], branch: int) -> dict[str, Tensor]:
    """Keep one branch's norms under their plain names, and leave the projection head out."""
    other = f".bn_list.{1 - branch}."
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("fc.") or other in name:
            continue
        plain = name.replace(f".bn_list.{branch}.", ".")
        plain = plain.replace("downsample.conv.", "shortcut.0.").replace("downsample.bn.", "shortcut.1.")
        renamed[plain] = tensor.detach().clone().to(torch.device("cpu"))
    return renamed
