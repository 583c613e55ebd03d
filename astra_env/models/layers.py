"""Building blocks of every network: input normalisation, norms with branches, explicit initialisation."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BRANCHES = ("clean", "adv")

ChannelStatistics = tuple[Sequence[float], Sequence[float]]
NORMALIZATIONS: dict[str, ChannelStatistics | None] = {
    "none": None,
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""Input normalisations by name: (mean, std) per channel of images in [0, 1]."""
Network = TypeVar("Network", bound=nn.Module)


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation per channel, so that the network's input stays in [0, 1].

    Buffers ``mean`` and ``std`` of shape (C,) travel with the state dict, under the official names.
    Raises InputError when the two differ in length or a standard deviation is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std, default=0) <= 0:
            raise InputError(
                f"normalize: expected (mean, std) of one length with every std > 0, got {(mean, std)}; "
                "use (IMAGENET_MEAN, IMAGENET_STD) or None"
            )
        self._values = (tuple(mean), tuple(std))
        self.register_buffer("mean", torch.tensor(self._values[0], dtype=torch.float32))
        self.register_buffer("std", torch.tensor(self._values[1], dtype=torch.float32))

    def reset_parameters(self) -> None:
        """Write the constructor's values again, in the buffers' precision: without storage they were lost."""
        for buffer, values in zip((self.mean, self.std), self._values, strict=True):
            buffer.copy_(torch.tensor(values, dtype=buffer.dtype))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> the same shape, normalised."""
        return (images - self.mean[:, None, None]) / self.std[:, None, None]


class BranchNorm(nn.Module):
    """One normalisation per branch, chosen by an argument of ``forward`` and by nothing else.

    ``norm``: "branch" keeps BatchNorm statistics and affine parameters per branch (``bn_list.0`` clean, ``bn_list.1``
    adv, as in the official checkpoints), "single" shares one BatchNorm, "group" shares one GroupNorm and so has no
    batch statistics. ``flat`` is for features (N, C) instead of maps (N, C, H, W).
    """

    def __init__(self, channels: int, norm: str = "branch", *, flat: bool = False) -> None:
        super().__init__()
        kind = "group" if norm == "group" else "batch"
        count = len(BRANCHES) if norm == "branch" else 1
        self.bn_list = nn.ModuleList(make_norm(channels, kind, flat=flat) for _ in range(count))

    def forward(self, x: Tensor, branch: int) -> Tensor:
        """Normalise ``x`` with the norm of the branch at this position of ``BRANCHES``."""
        return self.bn_list[branch if len(self.bn_list) > 1 else 0](x)


def make_norm(channels: int, kind: str, *, flat: bool = False) -> nn.Module:
    """Return BatchNorm (``kind="batch"``) or GroupNorm ("group") for maps, or for flat features (N, C)."""
    if kind == "group":
        # At least eight channels share a group: with one channel a flat feature would normalise to zero.
        largest = max(1, min(32, channels // 8))
        return nn.GroupNorm(max(groups for groups in range(1, largest + 1) if channels % groups == 0), channels)
    return nn.BatchNorm1d(channels) if flat else nn.BatchNorm2d(channels)


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """1x1 convolution without bias."""
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


def stem_conv(width: int, stem: str) -> nn.Conv2d:
    """First convolution: 3x3 stride 1 for stem "cifar", 7x7 stride 2 for "imagenet"."""
    return conv3x3(3, width) if stem == "cifar" else nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)


def pool_stem(x: Tensor, stem: str) -> Tensor:
    """Max-pool after the stem, for "imagenet" only."""
    return x if stem == "cifar" else F.max_pool2d(x, 3, stride=2, padding=1)


def global_pool(x: Tensor) -> Tensor:
    """Feature maps (N, C, H, W) of any size -> means (N, C)."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def require_choice(field: str, value: str, allowed: Sequence[str]) -> str:
    """Return ``value`` when it is allowed; raises InputError naming the field and what it may be."""
    if value not in allowed:
        raise InputError(
            f"{field}: expected one of {', '.join(map(repr, allowed))}, got {value!r}; choose one of these"
        )
    return value


def require_positive(field: str, *values: int) -> None:
    """Raise InputError unless there is a value and every value is an integer >= 1."""
    if not values or any(not isinstance(value, int) or value < 1 for value in values):
        got = values[0] if len(values) == 1 else values
        raise InputError(f"{field}: expected integers >= 1, got {got!r}; pass one or more positive integers")


def build(constructor: Callable[[], Network], generator: torch.Generator | None, *, fan_out: bool = False) -> Network:
    """Construct a network whose every random number comes from ``generator``; torch's own generator when it is None.

    The network is laid out without storage first, so that nothing is drawn twice and, with a generator, torch's global
    random state stays as it was. It lands on the generator's device, else on torch's default device.
    """
    device = torch.get_default_device() if generator is None else generator.device
    with torch.device("meta"):
        network = constructor()
    network.to_empty(device=device)
    initialize(network, generator, fan_out=fan_out)
    return network


@torch.no_grad()
def initialize(network: nn.Module, generator: torch.Generator | None = None, *, fan_out: bool = False) -> None:
    """Initialise every layer in place from ``generator``.

    Convolutions and linear layers get PyTorch's default (uniform within 1/sqrt(fan_in), bias included); with
    ``fan_out`` convolutions get N(0, 2/fan_out) instead, as the official ASTrA, ACL and WideResNet code does. Norms
    start at the identity.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and fan_out:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm | Normalize):
            module.reset_parameters()
