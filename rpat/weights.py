"""Building a run's network, and loading it back from the run directory."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from astra_env.config.paths import user_path
from astra_env.data import ImageDataset
from astra_env.errors import CheckpointError, ConfigError, KeysDiffer
from astra_env.models import NETWORKS, NORMALIZATIONS, load_official
from astra_env.models.layers import ChannelStatistics
from astra_env.randomness import generator
from astra_env.storage.checkpoint import load_checkpoint
from rpat.config import NetworkConfig, RPATConfig
from rpat.resuming import config_of

WEIGHTS: dict[str, tuple[str, str]] = {
    "best": ("best.pt", "model"),
    "last": ("last.pt", "model"),
    "ema": ("last.pt", "ema"),
    "ema_best": ("ema_best.pt", "model"),
}
"""Kept weights by name: the file under ``checkpoints/`` and the key in it."""

_ROWS = 4096


def build_network(config: NetworkConfig, train: ImageDataset, seed: int) -> nn.Module:
    """Return the configured classifier for a training set, with its starting weights.

    Raises:
        ConfigError: when the data has labels for which the network has no logit.
        CheckpointError: when the starting weights do not fit.
    """
    classes = len(train.classes)
    outputs = config.num_classes if config.num_classes is not None else classes
    if outputs < classes:
        raise ConfigError(
            f"network.num_classes: {train.name!r} has labels 0..{classes - 1}, got {outputs} logits, so label "
            f"{outputs} is out of range; raise it or leave it null"
        )
    network = _make(config, outputs, _statistics(config, train), generator(seed, "network"))
    if config.checkpoint is not None:
        _start_from(network, config)
    return network


def _start_from(network: nn.Module, config: NetworkConfig) -> None:
    file = str(config.checkpoint)
    try:
        load_official(network, load_checkpoint(file), allow_missing=config.allow_missing)
    except KeysDiffer as error:
        parts = (name.partition(".")[0] for name in (*error.missing, *error.wrong_shape))
        first = next((part for part in parts if part == "linear"), None)
        advice = f"; or let it start anew: --network.allow_missing '[{first}]'" if first else ""
        raise CheckpointError(f"network.checkpoint: {file}: {error}{advice}") from error
    except CheckpointError as error:
        named = file in str(error)
        raise error if named else CheckpointError(f"network.checkpoint: {file}: {error}") from error


def _statistics(config: NetworkConfig, train: ImageDataset) -> ChannelStatistics | None:
    if config.normalize == "data":
        return channel_statistics(train)
    return NORMALIZATIONS[config.normalize or "none"]


def channel_statistics(dataset: ImageDataset) -> ChannelStatistics:
    """Return mean and standard deviation of every channel of uint8 images (N, 3, H, W), in [0, 1] units."""
    total = torch.zeros(2, 3, dtype=torch.float64)
    for images in dataset.images.split(_ROWS):
        values = images.to(torch.float64) / 255
        total += torch.stack((values.sum((0, 2, 3)), values.square().sum((0, 2, 3)))).cpu()
    mean, square = total * 3 / dataset.images.numel()
    deviation = (square - mean.square()).clamp_min(1e-6).sqrt()
    return tuple(mean.tolist()), tuple(deviation.tolist())


def load_network(run_dir: str | Path, weights: str = "best") -> tuple[nn.Module, RPATConfig]:
    """Return a run's network in eval mode on the CPU, and the run's configuration.

    Args:
        run_dir: the run directory.
        weights: best, last, ema (the average at the end) or ema_best.

    Raises:
        CheckpointError: when the run did not keep these weights.
        ConfigError: for an unknown name of weights or a directory without a run.
    """
    if weights not in WEIGHTS:
        raise ConfigError(f"weights: expected one of {', '.join(WEIGHTS)}, got {weights!r}; choose one of them")
    folder = user_path("run_dir", run_dir)
    config = config_of(folder)
    file, key = WEIGHTS[weights]
    state = load_checkpoint(folder / "checkpoints" / file)
    if state.get(key) is None or "num_classes" not in state:
        raise CheckpointError(f"{folder / 'checkpoints' / file}: holds no {weights} weights of a supervised run")
    placeholder = ((0.0,) * 3, (1.0,) * 3) if "normalize.mean" in state[key] else None
    network = _make(config.network, int(state["num_classes"]), placeholder, generator(0, "network"))
    load_official(network, state[key])
    return network.eval(), config


def _make(
    config: NetworkConfig, outputs: int, statistics: ChannelStatistics | None, source: torch.Generator
) -> nn.Module:
    constructor: Callable[..., nn.Module] = NETWORKS.get(config.name)
    return constructor(outputs, normalize=statistics, width=config.width, generator=source)
