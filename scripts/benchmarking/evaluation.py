"""How many images a second an evaluation attacks, in every way of computing it."""

import copy
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from astra_env.compute import memory_order
from astra_env.data import ImageDataset
from astra_env.evaluation.measures.auto_attack import autoattack
from astra_env.evaluation.measures.batches import device_of, to_unit
from astra_env.evaluation.measures.robustness import robust_accuracy
from astra_env.strategy import Attack
from benchmarking.clock import Clock

MODES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "channels_last": {"channels_last": True},
    "bf16": {"precision": "bf16"},
    "bf16 channels_last": {"precision": "bf16", "channels_last": True},
}
"""Ways to run PGD-20 by name; the first is the one that evaluations use unless they are told otherwise."""


def pgd_throughput(
    model: nn.Module, dataset: ImageDataset, *, steps: int = 20, repeats: int = 3, progress: bool = False
) -> dict[str, dict[str, float]]:
    """Return images per second under PGD at 8/255 and the accuracy found, by mode; modes take turns.

    Args:
        model: maps images (N, 3, H, W) in [0, 1] to logits; on the device to measure.
        dataset: labelled images, attacked as one batch.
        steps: of PGD.
        repeats: rounds after the warm-up.
        progress: show a progress bar.
    """
    order = memory_order(model, device_of(model), channels_last=True)
    last = copy.deepcopy(model).to(memory_format=order)  # type: ignore[call-overload]
    clock, found = Clock(device_of(model)), {}
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for repeat in tqdm(range(repeats + 1), f"PGD-{steps}", unit="round", disable=not progress):
        for mode, options in MODES.items():
            found[mode] = clock.wrap("attack", robust_accuracy)(
                last if options.get("channels_last") else model,
                dataset,
                Attack(8 / 255, 2 / 255, steps),
                batch_size=len(dataset),
                precision=options.get("precision", "fp32"),
            )
            taken = clock.take()["attack"]
            if repeat:
                seconds[mode].append(taken)
    return {
        mode: {
            "images_per_second": len(dataset) / statistics.median(values),
            "speedup": statistics.median(a / b for a, b in zip(seconds["fp32"], values, strict=True)),
            "accuracy": found[mode].value,
        }
        for mode, values in seconds.items()
    }


def autoattack_throughput(
    model: nn.Module, dataset: ImageDataset, *, version: str = "standard", progress: bool = False
) -> Mapping[str, float]:
    """Return images per second under AutoAttack at 8/255, for images that the model classifies right at first."""
    images = to_unit(dataset.images)
    with torch.no_grad():
        labels = model.eval()(images.to(device_of(model))).argmax(1).to(images.device)
    clock = Clock(device_of(model))
    attack: Callable[..., Any] = clock.wrap("attack", autoattack)
    result = attack(model, images, labels, epsilon=8 / 255, version=version, batch_size=len(dataset), progress=progress)
    return {"images_per_second": len(dataset) / clock.take()["attack"], "robust": result.robust.value}
