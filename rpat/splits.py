"""Which images a supervised run trains on, selects by and is tested on."""

import torch
from torch import Tensor

from astra_env.data import ImageDataset, load_dataset, split_validation
from astra_env.data.chosen import Choose
from astra_env.data.subsets import stratified_indices
from astra_env.errors import DataError
from astra_env.evaluation.measures.batches import require_alike, require_labels
from astra_env.randomness import derive_seed
from rpat.config import RPATConfig


def load_splits(config: RPATConfig, device: torch.device) -> tuple[ImageDataset, ImageDataset]:
    """Return the training and validation images of a run, both from the training split.

    Raises:
        DataError: when the data cannot be read, an image has no label, or the validation slice does not fit.
    """
    train = load_split(config, "train", device, choose=_subset(config))
    return split_validation(train, config.validation.size, derive_seed(config.seed, "split"))


def load_test(config: RPATConfig, like: ImageDataset, device: torch.device) -> ImageDataset:
    """Return the test images; raises DataError when there are none, or they differ from ``like`` in kind."""
    try:
        test = load_split(config, "test", device)
        require_alike(like, test)
    except DataError as error:
        if not config.test.enabled:
            raise
        raise DataError(f"test.enabled: the run ends with a test ({error}); or set --test.enabled false") from error
    return test


def load_split(config: RPATConfig, split: str, device: torch.device, choose: Choose | None = None) -> ImageDataset:
    """Return a whole split, or what ``choose`` wants of it; raises DataError for images without labels."""
    data = config.data
    dataset = load_dataset(
        data.name,
        split,
        root=data.root,
        download=data.download,
        image_size=data.image_size,
        device=device,
        max_device_bytes=data.device_budget_mib << 20,
        max_host_bytes=data.host_budget_mib << 20,
        progress=config.run.progress,
        cache=data.cache,
        holdout=data.holdout,
        choose=choose,
    )
    require_labels(dataset)
    return dataset


def _subset(config: RPATConfig) -> Choose | None:
    """Return the run's own choice of ``data.max_images`` training images."""
    count = config.data.max_images
    if count is None:
        return None

    def choose(dataset: ImageDataset) -> Tensor | None:
        require_labels(dataset)
        whole = count >= len(dataset)
        return None if whole else stratified_indices(dataset, count, derive_seed(config.seed, "subset"))

    return choose
