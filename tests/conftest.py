"""Fixtures shared by the tests: golden files, deterministic weights, small real images."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

REPOSITORY = Path(__file__).resolve().parent.parent


def fill_deterministically(model: nn.Module) -> nn.Module:
    """Fill every parameter and buffer by the rule of the golden files' README, from the tensor's name alone."""
    named = [*model.named_parameters(), *model.named_buffers()]
    with torch.no_grad():
        for name, tensor in named:
            if name.endswith("num_batches_tracked"):
                tensor.zero_()
                continue
            if name.startswith("normalize."):
                continue
            random = np.random.RandomState(zlib.crc32(name.encode()))  # noqa: NPY002 - the rule of the golden files
            z = random.standard_normal(tuple(tensor.shape)).astype(np.float32)
            if name.endswith("running_mean"):
                value = 0.1 * z
            elif name.endswith("running_var"):
                value = 1 + 0.2 * np.abs(z)
            elif tensor.dim() >= 2:
                value = z * np.sqrt(2 / tensor[0].numel())
            elif name.endswith("weight"):
                value = 1 + 0.1 * z
            else:
                value = 0.1 * z
            tensor.copy_(torch.from_numpy(np.asarray(value, dtype=np.float32)))
    return model


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    directory = REPOSITORY.parent / "shared" / "golden"
    if not directory.is_dir():
        pytest.skip("golden files are not beside this checkout")
    return directory


def _load_golden(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path) as archive:
        return {name: torch.from_numpy(np.array(archive[name])) for name in archive.files}


@pytest.fixture(scope="session")
def golden_astra(golden_dir: Path) -> dict[str, torch.Tensor]:
    return _load_golden(golden_dir / "astra.npz")


@pytest.fixture(scope="session")
def golden_rpat(golden_dir: Path) -> dict[str, torch.Tensor]:
    return _load_golden(golden_dir / "rpat.npz")


@pytest.fixture(scope="session")
def golden_keys(golden_dir: Path) -> dict[str, dict[str, list[int]]]:
    """Names and shapes of the official checkpoints: target, strategy and the official RPAT networks."""
    keys = json.loads((golden_dir / "official_state_dict_keys.json").read_text())
    keys.update(json.loads((golden_dir / "rpat_official_state_dict_keys.json").read_text()))
    return {network: dict(entries) for network, entries in keys.items()}


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))
