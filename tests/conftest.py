"""Fixtures shared by the tests: the golden files of the official code."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_arrays import GOLDEN, load_golden
from hypothesis import settings

# The same cases in every run; ``--hypothesis-profile=thorough`` draws new ones, and 20 times as many.
settings.register_profile("quick", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=2000, deadline=None)
settings.load_profile("quick")


@pytest.fixture(scope="session", autouse=True)
def _decoded_images_go_to_a_folder_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # Matplotlib looks there too, and would list the machine's fonts anew.
        patch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR", str(Path("~/.cache/matplotlib").expanduser())))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user_cache")))
        yield


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def golden_astra(golden_dir: Path) -> dict[str, Any]:
    return load_golden(golden_dir / "astra.npz")


@pytest.fixture(scope="session")
def golden_rpat(golden_dir: Path) -> dict[str, Any]:
    return load_golden(golden_dir / "rpat.npz")


@pytest.fixture(scope="session")
def golden_lars_zero_norms() -> dict[str, Any]:
    return load_golden(GOLDEN / "lars_zero_norms_seed7.npz")


@pytest.fixture(scope="session")
def golden_three_steps() -> dict[str, Any]:
    return load_golden(GOLDEN / "astra_three_steps_seed7.npz")


@pytest.fixture(scope="session")
def golden_strategy_updates() -> dict[str, Any]:
    return load_golden(GOLDEN / "astra_strategy_updates_seed7.npz")


@pytest.fixture(scope="session")
def golden_keys(golden_dir: Path) -> dict[str, dict[str, list[int]]]:
    """Names and shapes of the official checkpoints: target, strategy and the official RPAT networks."""
    keys = json.loads((golden_dir / "official_state_dict_keys.json").read_text())
    keys.update(json.loads((golden_dir / "rpat_official_state_dict_keys.json").read_text()))
    return {network: dict(entries) for network, entries in keys.items()}


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))
