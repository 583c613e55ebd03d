"""From a configuration to its target network."""

from typing import Any

import torch

from astra_env.compute import memory_order
from astra_env.config.schema import TargetConfig
from astra_env.models.layers import NORMALIZATIONS, ChannelStatistics
from astra_env.models.own_backbone import BackboneTarget, own_target
from astra_env.models.target import TargetNetwork, target_resnet18
from astra_env.models.vit import TransformerTarget, target_vit
from astra_env.randomness import generator

IDENTITY: ChannelStatistics = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""No normalisation, but said in the network's state: a checkpoint tells how its inputs are normalised."""


def build_target(
    config: TargetConfig, seed: int, device: torch.device, channels_last: bool = False, side: int | None = None
) -> TargetNetwork | TransformerTarget | BackboneTarget:
    """Build the target network of a configuration; its weights depend on the seed alone, not on the device.

    Args:
        config: the network's section.
        seed: the run's.
        device: where the network lives.
        channels_last: keep it in that order, if it may be (:func:`astra_env.compute.memory_order`).
        side: of the views in pixels; an encoder that is not ours is tried with it.
    """
    target: TargetNetwork | TransformerTarget | BackboneTarget
    sizes: dict[str, Any] = {"width": config.width, "feature_dim": config.feature_dim, "hidden_dim": config.hidden_dim}
    sizes["normalize"] = NORMALIZATIONS[config.normalize] or IDENTITY
    source = generator(seed, "target")
    if config.backbone == "vit":
        target = target_vit(depth=config.depth, patch_size=config.patch_size, generator=source, **sizes)
    elif ":" in config.backbone:
        norm = "single" if config.norm == "branch" else config.norm
        target = own_target(config.backbone, generator=source, norm=norm, head=config.head, **sizes)
    else:
        target = target_resnet18(
            blocks=config.blocks, stem=config.stem, norm=config.norm, head=config.head, generator=source, **sizes
        )
    target = target.to(device)
    if isinstance(target, BackboneTarget) and side is not None:
        target.require_size(side, device)
    order = memory_order(target, device, channels_last=channels_last)
    return target.to(memory_format=order)  # type: ignore[call-overload]
