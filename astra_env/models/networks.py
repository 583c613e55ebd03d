"""The registry of supervised networks by name."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from astra_env.models.layers import ChannelStatistics
from astra_env.models.preact_resnet import preact_resnet18
from astra_env.models.resnet import bottleneck_resnet26, resnet18
from astra_env.models.wide_resnet import wide_resnet_channels
from astra_env.registry import Registry

NETWORKS: Registry[Callable[..., nn.Module]] = Registry("network")
"""Supervised networks: ``NETWORKS.get(name)(num_classes, normalize=None, width=None, generator=None)``.

``width`` is the number of channels of the first stage (64, for WideResNets 160, when None). Every network maps images
(N, 3, H, W) in [0, 1] to logits (N, num_classes) and has ``embed(images)``, ``embed_dim`` and a last layer ``linear``.
"""


@NETWORKS.register("resnet18")
def _resnet18(
    num_classes: int = 10,
    normalize: ChannelStatistics | None = None,
    width: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    return resnet18(num_classes, normalize, 64 if width is None else width, generator=generator)


@NETWORKS.register("preact_resnet18")
def _preact_resnet18(
    num_classes: int = 10,
    normalize: ChannelStatistics | None = None,
    width: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    return preact_resnet18(num_classes, normalize, 64 if width is None else width, generator=generator)


@NETWORKS.register("bottleneck_resnet26")
def _bottleneck_resnet26(
    num_classes: int = 10,
    normalize: ChannelStatistics | None = None,
    width: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    return bottleneck_resnet26(num_classes, normalize, 64 if width is None else width, generator=generator)


def _wide_resnet(
    depth: int,
    num_classes: int = 10,
    normalize: ChannelStatistics | None = None,
    width: int | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    channels = 160 if width is None else width
    return wide_resnet_channels(depth, channels, num_classes, normalize, generator=generator)


NETWORKS.register("wrn_28_10")(partial(_wide_resnet, 28))
NETWORKS.register("wrn_34_10")(partial(_wide_resnet, 34))
