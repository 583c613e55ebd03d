"""From a configuration to its images."""

import torch

from astra_env.config.schema import DataConfig
from astra_env.data.chosen import at_most
from astra_env.data.dataset import ImageDataset
from astra_env.data.loading import load_dataset


def load_training_images(
    config: DataConfig, device: torch.device, split: str = "pretrain", *, progress: bool = True
) -> ImageDataset:
    """Load one split of the configured data set, cut to ``max_images`` when that is set; ``progress`` shows a bar."""
    return load_dataset(
        config.name,
        split,
        root=config.root,
        download=config.download,
        image_size=config.image_size,
        device=device,
        max_device_bytes=config.device_budget_mib << 20,
        max_host_bytes=config.host_budget_mib << 20,
        progress=progress,
        cache=config.cache,
        holdout=config.holdout,
        choose=None if split == "test" else at_most(config.max_images),
    )
