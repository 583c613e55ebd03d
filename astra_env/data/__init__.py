"""Data sets by name, as uint8 tensors in memory, and the batches drawn from them."""

from astra_env.data import digits, folder, tiny_imagenet, torchvision_sets  # noqa: F401 - they register their readers
from astra_env.data.dataset import ImageDataset
from astra_env.data.loading import load_dataset
from astra_env.data.request import DATASETS, NATIVE_SIZES, ReadRequest
from astra_env.data.sampler import BatchSampler
from astra_env.data.subsets import label_fraction, split_labelled, split_validation

__all__ = [
    "DATASETS",
    "NATIVE_SIZES",
    "BatchSampler",
    "ImageDataset",
    "ReadRequest",
    "label_fraction",
    "load_dataset",
    "split_labelled",
    "split_validation",
]
