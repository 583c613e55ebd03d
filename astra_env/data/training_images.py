"""From a configuration to its images."""

import torch

from astra_env.config.schema import DataConfig
from astra_env.data.dataset import ImageDataset
from astra_env.data.loading import load_dataset
from astra_env.data.subsets import label_fraction
from astra_env.errors import ConfigError


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
