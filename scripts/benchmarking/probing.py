"""How long a linear probe takes once features are extracted: the default recipe on random features of CIFAR-10's size.

python -m benchmarking.probing --out probe.json
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from astra_env.data import ImageDataset
from astra_env.evaluation.campaign.results import versions
from astra_env.evaluation.probes.linear import linear_probe


class _FirstPixels(nn.Module):
    """An encoder whose features are pixels, so that extracting them costs next to nothing."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.embed_dim = dimensions

    def embed(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> their first pixels (N, embed_dim)."""
        return images.flatten(1)[:, : self.embed_dim]


def measure(images: int = 50_000, dimensions: int = 512, classes: int = 10, epochs: int = 25) -> dict[str, Any]:
    """Time a linear probe of random features (images, dimensions) and return seconds and machine."""
    source = torch.Generator().manual_seed(0)
    side = next(side for side in range(1, dimensions + 1) if 3 * side**2 >= dimensions)
    pixels = torch.randint(256, (images, 3, side, side), generator=source, dtype=torch.uint8)
    labels = torch.randint(classes, (images,), generator=source)
    train = ImageDataset("random", "train", pixels, labels, tuple(map(str, range(classes))))
    started = time.perf_counter()
    linear_probe(_FirstPixels(dimensions), train, epochs=epochs, augment=False)
    return {
        "features": [images, dimensions],
        "classes": classes,
        "epochs": epochs,
        "batch_size": 512,
        "seconds": round(time.perf_counter() - started, 4),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            **versions(),
        },
        "command": "python -m benchmarking.probing",
    }


def main() -> None:
    """Measure, print, and write to ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    text = json.dumps(measure(options.images, options.dimensions), indent=2)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
