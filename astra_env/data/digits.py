"""scikit-learn's bundled handwritten digits: real images without a download."""

import torch
from torch.nn import functional

from astra_env.data.dataset import ImageDataset
from astra_env.data.request import DATASETS, ReadRequest
from astra_env.data.subsets import split_validation

DEFAULT_SIZE = 16
TEST_IMAGES = 360
_SPLIT_SEED = 3407


@DATASETS.register("digits")
def read_digits(request: ReadRequest) -> ImageDataset:
    """Read 1437 training or 360 test digits, grey as RGB, bilinear from 8x8 to 16x16 or ``image_size``.

    The split is fixed and stratified. Source: the test half of UCI "Optical Recognition of Handwritten Digits".
    """
    from sklearn.datasets import load_digits

    bundle = load_digits()
    grey = torch.from_numpy(bundle.images).unsqueeze(1) * (255 / 16)
    size = request.image_size or DEFAULT_SIZE
    scaled = functional.interpolate(grey, size=(size, size), mode="bilinear", align_corners=False, antialias=size < 8)
    images = scaled.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    classes = tuple(str(digit) for digit in bundle.target_names)
    everything = ImageDataset("digits", request.split, images, torch.from_numpy(bundle.target).long(), classes)
    train, test = split_validation(everything, TEST_IMAGES, _SPLIT_SEED)
    return test if request.split == "test" else train
