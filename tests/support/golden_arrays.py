"""The arrays of the official code that lie in ``tests/golden``."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def load_golden(path: Path) -> dict[str, Any]:
    """Return a file's arrays as tensors, and its arrays of names as lists of strings."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return {
        name: values.tolist() if values.dtype.kind == "U" else torch.from_numpy(np.array(values))
        for name, values in arrays.items()
    }
