"""From a configuration to the parts of a learner: network, images, augmentation, optimiser."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from astra_env.augment import SimCLRAugment
from astra_env.compute import memory_order
from astra_env.config.schema import DataConfig, ExperimentConfig, LearnerConfig, TargetConfig
from astra_env.data import ImageDataset, label_fraction, load_dataset
from astra_env.errors import ConfigError
from astra_env.models import NORMALIZATIONS, Target, target_resnet18, target_vit
from astra_env.models.layers import ChannelStatistics
from astra_env.optim import LARS
from astra_env.randomness import generator

IDENTITY: ChannelStatistics = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""No normalisation, but said in the network's state: a checkpoint tells how its inputs are normalised."""


def build_target(config: TargetConfig, seed: int, device: torch.device, channels_last: bool = False) -> Target:
    """Build the target network of a configuration; its weights depend on the seed alone, not on the device.

    Args:
        config: the network's section.
        seed: the run's.
        device: where the network lives.
        channels_last: keep it in that order, if it may be (:func:`astra_env.compute.memory_order`).
    """
    sizes: dict[str, Any] = {"width": config.width, "feature_dim": config.feature_dim, "hidden_dim": config.hidden_dim}
    sizes["normalize"] = NORMALIZATIONS[config.normalize] or IDENTITY
    source = generator(seed, "target")
    if config.backbone == "vit":
        target: Target = target_vit(depth=config.depth, patch_size=config.patch_size, generator=source, **sizes)
    else:
        target = target_resnet18(
            blocks=config.blocks, stem=config.stem, norm=config.norm, head=config.head, generator=source, **sizes
        )
    target = target.to(device)
    order = memory_order(target, device, channels_last=channels_last)
    return target.to(memory_format=order)  # type: ignore[call-overload]


def load_training_images(
    config: DataConfig, device: torch.device, split: str = "pretrain", *, progress: bool = True
) -> ImageDataset:
    """Load one split of the configured data set, cut to ``max_images`` when that is set; ``progress`` shows a bar."""
    dataset = load_dataset(
        config.name,
        split,
        root=config.root,
        download=config.download,
        image_size=config.image_size,
        device=device,
        max_device_bytes=config.device_budget_mib << 20,
        max_host_bytes=config.host_budget_mib << 20,
        progress=progress,
    )
    if config.max_images is None or config.max_images >= len(dataset) or split == "test":
        return dataset
    if config.max_images < 1:
        raise ConfigError(f"data.max_images: expected an integer >= 1, got {config.max_images}")
    if dataset.classes and config.max_images >= len(dataset.classes):
        return label_fraction(dataset, config.max_images / len(dataset), seed=0)
    return dataset.subset(torch.arange(config.max_images))


def build_augment(config: ExperimentConfig, native_size: int) -> SimCLRAugment:
    """Build the augmentation of a configuration for images of ``native_size`` pixels."""
    options = config.views
    return SimCLRAugment(
        image_size=options.size or native_size,
        crop_scale=options.crop_scale,
        flip_probability=options.flip_probability,
        jitter=options.jitter,
        jitter_probability=options.jitter_probability,
        grayscale_probability=options.grayscale_probability,
        interpolation=options.interpolation,
        color_first=options.color_first,
    )


def build_optimizer(config: LearnerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimiser of a configuration."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )
    return LARS(
        parameters,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        trust_coefficient=config.trust_coefficient,
    )
