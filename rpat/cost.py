"""What a training step costs, beside the official form of the same step: operations counted and seconds measured.

The official form asks for weight gradients in every step of the attack; ours freezes the weights.
"""

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from astra_env.attacks.attack_copy import AttackCopy
from astra_env.compute import Speed, cpu_name, memory_order
from astra_env.config.options import SpeedOptions
from astra_env.evaluation.campaign.results import versions
from astra_env.models import NETWORKS
from astra_env.strategy import Attack
from rpat.methods import Method, RobustPerception, Step, make_method

BUDGET = Attack(8 / 255, 2 / 255, 10)


def official_attack(step: Step) -> Tensor:
    """Return the l-inf PGD of the official code: a full backward pass, weight gradients included, at every step."""
    model, images, budget = step.model, step.images, step.budget
    model.eval()
    noise = torch.rand(images.shape, generator=step.generator).to(images)
    position = (images + (2 * noise - 1) * budget.epsilon).clamp(0, 1)
    for _ in range(budget.steps):
        position.requires_grad_()
        F.cross_entropy(model(position), step.labels).backward()
        assert position.grad is not None
        moved = position.detach() + budget.step_size * position.grad.sign()
        position = torch.minimum(torch.maximum(moved, images - budget.epsilon), images + budget.epsilon).clamp(0, 1)
    model.train()
    return position.detach()


def training_step(step: Step, method: Method, attack: Callable[[Step], Tensor]) -> Tensor:
    """Run attack, losses and backward pass of one step, without the optimiser, and return the loss."""
    step.model.train()
    step.adversarial = attack(step)
    step.model.zero_grad(set_to_none=True)
    loss = torch.stack(list(method.terms(step).values())).sum()
    loss.backward()
    return loss.detach()


@dataclass(frozen=True)
class Form:
    """One way to take the same step: on what, how it is attacked, in what precision."""

    model: nn.Module
    images: Tensor
    attack: Callable[[Step], Tensor]
    autocast: torch.dtype | None = None
    attacked: AttackCopy | None = None

    def step(self, labels: Tensor, seed: int = 0) -> Step:
        """Return the step of a batch with robust perception, its attack started from ``seed``."""
        return Step(
            self.model,
            self.images,
            labels,
            BUDGET,
            generator=torch.Generator().manual_seed(seed),
            perception=RobustPerception(),
            autocast=self.autocast,
            attacked=None if self.attacked is None else self.attacked.forward(len(self.images)),
        )


def forms(model: nn.Module, images: Tensor, method: Method) -> dict[str, Form]:
    """Return the official form of a step, ours, and ours with ``learner.fast`` (on a copy of the model)."""
    speed = Speed.of(SpeedOptions(fast=True), images.device)
    order = memory_order(model, images.device, channels_last=speed.channels_last)
    fast = copy.deepcopy(model).to(memory_format=order)  # type: ignore[call-overload]
    folded = AttackCopy(fast, speed)
    return {
        "ours": Form(model, images, method.attack),
        "official": Form(model, images, official_attack),
        "fast": Form(fast, images.contiguous(memory_format=order), method.attack, speed.autocast, folded),
    }


def forward_equivalents(
    model: nn.Module, images: Tensor, labels: Tensor, *, method: str = "pgd_at", form: str = "ours"
) -> float:
    """Return the operations of one step with robust perception, in forward passes of the batch.

    Args:
        model: classifier of images (N, 3, H, W) in [0, 1].
        images: the batch.
        labels: int64 (N,).
        method: name of the method.
        form: "ours", "official" (PGD-AT's attack only) or "fast".
    """
    with torch.no_grad():
        forward = _count(lambda: model(images))
    trained = make_method(method)
    chosen = forms(model, images, trained)[form]
    return _count(lambda: training_step(chosen.step(labels), trained, chosen.attack)) / forward


def measure_speed(
    model: nn.Module, images: Tensor, labels: Tensor, repeats: int = 5, *, progress: bool = False
) -> dict[str, Any]:
    """Time PGD-AT with robust perception in all forms, in turn in one process.

    Returns:
        Seconds of every repetition, the medians, and the ratios official / ours and official / fast of the medians.
    """
    method = make_method("pgd_at")
    contestants = forms(model, images, method)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in tqdm(range(repeats + 1), "rpat", unit="round", disable=not progress):
        for name, form in contestants.items():
            start = time.perf_counter()
            training_step(form.step(labels, repeat), method, form.attack)
            if images.is_cuda:
                torch.cuda.synchronize()
            if repeat:  # the first round warms caches and the allocator up
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": seconds,
        "median_seconds": medians,
        "speedup": medians["official"] / medians["ours"],
        "fast_speedup": medians["official"] / medians["fast"],
    }


def epoch_overhead(model: nn.Module, step_seconds: float, repeats: int = 5) -> dict[str, float]:
    """Return what averaging and validating twice add to a CIFAR-10 epoch of the presets, as shares of its training.

    Args:
        model: the classifier.
        step_seconds: measured time of one training step; the shorter the batch, the larger the average's share.
        repeats: timed updates of the average.
    """
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        average.update_parameters(model)
        seconds.append(time.perf_counter() - start)
    update = statistics.median(seconds[1:])
    # Clean pass, attack, final pass, for the network and its average, on 1,000 images against 49,000 trained on.
    validation = 2 * 1000 * (2 * BUDGET.steps + 2) / (49_000 * (2 * BUDGET.steps + 9))
    share = update / step_seconds
    return {
        "average_update_seconds": update,
        "average_share": share,
        "validation_share": validation,
        "total_share": share + validation,
    }


def benchmark(
    network: str = "resnet18",
    batch_size: int = 16,
    size: int = 32,
    repeats: int = 5,
    *,
    width: int | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """Return operations and measured time of one PGD-AT+RP step of a network on random images, with the machine."""
    source = torch.Generator().manual_seed(0)
    model = NETWORKS.get(network)(10, width=width, generator=source).to(device)
    images = torch.rand(batch_size, 3, size, size, generator=source).to(device)
    labels = torch.randint(10, (batch_size,), generator=source).to(device)
    speed = measure_speed(model, images, labels, repeats, progress=progress)
    return {
        "network": network,
        "batch_size": batch_size,
        "image_size": size,
        "attack_steps": BUDGET.steps,
        "forward_equivalents": {
            form: forward_equivalents(model, images, labels, form=form) for form in ("ours", "official", "fast")
        },
        **speed,
        "epoch_overhead": epoch_overhead(model, speed["median_seconds"]["ours"], repeats),
        "command": f"python -m rpat.cost --network {network} --batch_size {batch_size} --repeats {repeats}",
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """Return the processor, the threads in use and the versions that a measurement depends on."""
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), **versions()}


def _count(work: Callable[[], Any]) -> float:
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return float(counter.get_total_flops())


def main() -> None:
    """Write the benchmark's JSON to ``--out`` and print it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    text = json.dumps(benchmark(options.network, options.batch_size, repeats=options.repeats), indent=2)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
