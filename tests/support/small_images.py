"""Pixels that a test can make again from a number."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

ImageFolder = Callable[..., Path]


def pixels(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
