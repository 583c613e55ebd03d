"""Which images a supervised run trains on, selects by and is tested on."""

import torch

from astra_env.data import ImageDataset, load_dataset, split_validation
from astra_env.evaluation.measures.batches import require_alike, require_labels
from astra_env.randomness import derive_seed
from rpat.config import RPATConfig


def load_splits(config: RPATConfig, device: torch.device) -> tuple[ImageDataset, ImageDataset, ImageDataset]:
    """Return the training, validation and test images of a run; only the first two come from the training split.

    Raises:
        DataError: when the data cannot be read, an image has no label, or the validation slice does not fit.
    """
    train, test = (
        load_dataset(
            config.data.name,
            split,
            root=config.data.root,
            download=config.data.download,
            image_size=config.data.image_size,
            device=device,
            max_device_bytes=config.data.device_budget_mib << 20,
            max_host_bytes=config.data.host_budget_mib << 20,
            progress=config.run.progress,
        )
        for split in ("train", "test")
    )
    require_labels(train)
    require_alike(train, test)
    if config.data.max_images is not None and config.data.max_images < len(train):
        train = split_validation(train, config.data.max_images, derive_seed(config.seed, "subset"))[1]
    train, validation = split_validation(train, config.validation.size, derive_seed(config.seed, "split"))
    return train, validation, test
