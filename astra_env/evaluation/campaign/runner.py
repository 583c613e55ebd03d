"""An evaluation from files to a result file: load, train heads, measure, keep going after interruptions."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from astra_env.config.paths import user_path
from astra_env.config.reading import to_dict
from astra_env.data import ImageDataset, load_dataset, split_validation
from astra_env.distributed import ALONE, World
from astra_env.errors import CheckpointError, ConfigError
from astra_env.evaluation.campaign.checks import require_finishable
from astra_env.evaluation.campaign.config import EvaluationConfig
from astra_env.evaluation.campaign.heads import classifier_for, protocol_of
from astra_env.evaluation.campaign.loading import LoadedNetwork, load_network, resolve, run_config
from astra_env.evaluation.campaign.measurements import measurements, pgd, test_part
from astra_env.evaluation.campaign.report import HELD_OUT
from astra_env.evaluation.campaign.results import ResultFile
from astra_env.evaluation.measures.batches import require_alike
from astra_env.evaluation.measures.corruption import check_folder
from astra_env.randomness import derive_seed
from astra_env.storage.run_lock import owned

Hook = Callable[[str, nn.Module, ImageDataset], Mapping[str, Any]]
"""A further analysis: maps a network's name, its classifier (images in [0, 1] -> logits) and the test images to plain
values."""

FOLDERS = ("models", "autoattack")
"""What an evaluation keeps in its output folder beside the results."""
FREE_KEYS = ("attacks", "curves", "corruptions", "device", "attack")
"""Parts of the configuration that only say what is measured: each measurement carries its own settings."""


def evaluate(
    config: EvaluationConfig,
    checkpoints: Sequence[str | Path],
    out: str | Path,
    *,
    every: bool = False,
    hooks: Mapping[str, Hook] | None = None,
    progress: bool = False,
    world: World = ALONE,
) -> dict[str, Any]:
    """Evaluate every checkpoint and return what ``results.json`` in ``out`` then holds.

    The file is written after every measurement and says "partial" until the end; the same call continues it.

    Args:
        config: what to measure.
        checkpoints: run directories, checkpoints or exports.
        out: the output folder.
        every: evaluate all kept checkpoints of each run directory and choose among them on held-out training images.
        hooks: further analyses by name.
        progress: show progress bars.
        world: the ranks that measure together; they need a common file system. Rank 0 trains heads and writes.

    Raises:
        AstraError: naming the file, field or value that cannot be used.
    """
    if not checkpoints:
        raise ConfigError("checkpoints: expected at least one run directory or checkpoint file, got none")
    files = [path for item in checkpoints for path in (kept_checkpoints(item) if every else [resolve(item)])]
    require_one_data_set(config, files)
    config = with_data_of_run(config, files[0])
    device, progress = world.resolve(config.device), progress and world.main
    reading = config.network
    options: dict[str, Any] = {"weights": reading.weights, "normalize": reading.normalize, "backbone": reading.backbone}
    loaded = [load_network(file, **options) for file in files]
    loaded = with_unique_names(loaded)
    for network in loaded:
        protocol_of(config, network)
    train, test = images_of(config, progress)
    require_finishable(config, loaded, train, test)
    if config.corruptions is not None:
        check_folder(config.corruptions, tuple(test.images.shape[2:]))
    with owned(Path(out), "out", FOLDERS) if world.main else nullcontext():
        return _measure_all(config, loaded, train, test, Path(out), device, every, hooks or {}, progress, world)


def _measure_all(
    config: EvaluationConfig,
    loaded: Sequence[LoadedNetwork],
    train: ImageDataset,
    test: ImageDataset,
    folder: Path,
    device: torch.device,
    every: bool,
    hooks: Mapping[str, Hook],
    progress: bool,
    world: World,
) -> dict[str, Any]:
    results = ResultFile(folder, conditions_of(config, every), world)
    results.values["config"] = to_dict(config)
    for network in loaded:
        fitting, held_out = (train, None) if not every else held_out_slice(config, network, train)
        record = results.open(network.name, describe(network))
        with world.main_first():
            trained = classifier_for(config, network, fitting, test, folder / "models", device, progress=progress)
        results.trained(record, trained.description, trained.settings)
        state = folder / "autoattack" / network.name.replace("/", "_")
        for item in measurements(config, trained.classifier, test, state, progress=progress, world=world):
            results.measure(record, item.name, item.settings, item.compute, spread=item.spread)
        if held_out is not None:
            epsilon = config.epsilons[0]
            item = pgd(config, trained.classifier, held_out, "pgd", epsilon, progress=progress, world=world)
            results.measure(record, f"{HELD_OUT}{item.name}", item.settings, item.compute, spread=True)
        for name, hook in hooks.items():
            analysis = partial(hook, network.name, trained.classifier, test)
            results.measure(record, name, to_dict(config.attack), lambda analysis=analysis: dict(analysis()))  # type: ignore[misc]
        network.network.to("cpu")
    results.finish()
    return results.values


def kept_checkpoints(run: str | Path) -> list[Path]:
    """Return a run's kept checkpoints in the order of training; raises CheckpointError when it kept none."""
    folder = user_path("checkpoint", run) / "checkpoints"
    numbered = {}
    for path in folder.glob("*.pt"):
        if match := re.fullmatch(r"(?:step|epoch)_(\d+)", path.stem):
            numbered[int(match[1])] = path
    if not numbered:
        raise CheckpointError(f"{run}: no kept checkpoints in {folder}; train with --run.keep_every N, or drop --every")
    return [numbered[number] for number in sorted(numbered)]


def with_data_of_run(config: EvaluationConfig, file: Path) -> EvaluationConfig:
    """Fill in the data set from the run that a checkpoint lies in; raises ConfigError when none is known."""
    section = run_config(file).get("data") or {}
    name = config.data.name or section.get("name")
    if name is None:
        raise ConfigError(f"data.name: {file} lies in no run directory, so say which images: --data.name cifar10")
    if config.data.name is None and ":" in str(name):
        raise ConfigError(
            f"data.name: the run of {file} took its images from the code {name!r}, which is imported only when asked "
            f"for: --data.name {name}"
        )
    same = name == section.get("name")
    size = config.data.image_size or (section.get("image_size") if same else None)
    root = config.data.root or (section.get("root") if same else None) or "data"
    own: dict[str, Any] = {
        key: section.get(key) for key in ("holdout", "cache") if same and getattr(config.data, key) is None
    }
    return replace(config, data=replace(config.data, name=name, root=root, image_size=size, **own))


def require_one_data_set(config: EvaluationConfig, files: Sequence[Path]) -> None:
    """Raise ConfigError when runs were trained on different images and nothing says which to evaluate them all on."""
    for option, given in (("name", config.data.name), ("image_size", config.data.image_size)):
        sections = [(file, (run_config(file).get("data") or {}).get(option)) for file in files]
        known = [(file, value) for file, value in sections if value is not None]
        other = next(((file, value) for file, value in known if value != known[0][1]), None)
        if given is None and other is not None:
            raise ConfigError(
                f"data.{option}: the run of {known[0][0]} has {known[0][1]} and that of {other[0]} has {other[1]}; "
                f"evaluate them apart or say which for all: --data.{option}"
            )


def images_of(config: EvaluationConfig, progress: bool) -> tuple[ImageDataset, ImageDataset]:
    """Return the training images and the test images to measure on; ``progress`` shows a bar while decoding."""
    data = config.data
    options: dict[str, Any] = {"root": data.root, "download": data.download, "image_size": data.image_size}
    options |= {"progress": progress, "cache": data.cache, "holdout": data.holdout}
    train, test = (load_dataset(str(data.name), split, **options) for split in ("train", "test"))
    require_alike(train, test)
    return train, test_part(config, test)


def held_out_slice(
    config: EvaluationConfig, network: LoadedNetwork, train: ImageDataset
) -> tuple[ImageDataset, ImageDataset]:
    """Return (training images, held-out images); the slice is the one the run itself held out, where it did."""
    section, seed = network.run.get("validation") or {}, int(network.run.get("seed") or 0)
    if "size" not in section:
        return split_validation(train, round(config.data.validation_fraction * len(train)), config.seed)
    subset = (network.run.get("data") or {}).get("max_images")
    if subset is not None and subset < len(train):
        train = split_validation(train, int(subset), derive_seed(seed, "subset"))[1]
    return split_validation(train, int(section["size"]), derive_seed(seed, "split"))


def with_unique_names(networks: list[LoadedNetwork]) -> list[LoadedNetwork]:
    """Return the networks with a number behind every name that was taken already."""
    seen: dict[str, int] = {}
    renamed = []
    for network in networks:
        seen[network.name] = seen.get(network.name, 0) + 1
        count = seen[network.name]
        renamed.append(network if count == 1 else replace(network, name=f"{network.name} ({count})"))
    return renamed


def describe(network: LoadedNetwork) -> dict[str, Any]:
    """Return what the report says about a network, as plain values."""
    return {
        "file": str(network.path),
        "architecture": type(network.network).__name__,
        "kind": network.kind,
        "sha256": network.digest,
        "epoch": network.epoch,
    }


def conditions_of(config: EvaluationConfig, every: bool) -> dict[str, Any]:
    """Return what all measurements of a result file have in common."""
    plain = to_dict(config)
    plain["data"] = {name: value for name, value in plain["data"].items() if name not in ("root", "cache", "download")}
    for section, name in (("data", "holdout"), ("network", "backbone")):
        if plain[section][name] is None:
            del plain[section][name]  # older result files do not know them
    if config.protocol != "semi_supervised":
        del plain["semi_supervised"]  # of no consequence, and absent from older result files
    return {**{name: value for name, value in plain.items() if name not in FREE_KEYS}, "every": every}
