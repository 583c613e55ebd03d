"""One process, all contestants in turn: time, arithmetic and memory of a training step."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from astra_env.benchmarking.clock import PHASES, Clock, attach
from astra_env.benchmarking.plain_step import PlainLearner
from astra_env.config import ExperimentConfig
from astra_env.configuration import load_config
from astra_env.data import ImageDataset
from astra_env.learner import ContrastiveLearner
from astra_env.strategy import AttackStrategy

MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "exact": {},
    "channels_last": {"learner.channels_last": True},
    "folded": {"learner.channels_last": True, "learner.fold_batchnorm": True},
    "bf16": {"learner.precision": "bf16"},
    "fast": {"learner.precision": "bf16", "learner.channels_last": True, "learner.fold_batchnorm": True},
}
"""Contestants by name and what they set; "plain" is the step without any of the savings."""


class Contestant:
    """A learner with its clock; steps under strategies drawn from its own generator."""

    def __init__(self, mode: str, base: Mapping[str, Any], dataset: ImageDataset, budgets: str) -> None:
        config = load_config(ExperimentConfig, "cifar10", {**base, **MODES[mode]})
        self.learner = (PlainLearner if mode == "plain" else ContrastiveLearner)(config, dataset)
        self.clock = Clock(self.learner.device)
        self.mode = mode
        self.budgets = budgets
        self._generator = torch.Generator().manual_seed(0)
        attach(self.learner, self.clock)

    def step(self) -> dict[str, float]:
        """Run one step; returns seconds by phase and in total."""
        self.learner.views()
        strategy = self.clock.wrap("policy", self._strategy)()
        self.clock.wait()
        started = time.perf_counter()
        self.learner.step(strategy)
        self.clock.wait()
        seconds = self.clock.take()
        outside = seconds.get("augment", 0.0) + seconds["policy"]
        return {**seconds, "step": time.perf_counter() - started + outside}

    def forward_equivalents(self) -> dict[str, float]:
        """Count the operations of one step and of its attack, in forward passes of all views."""
        learner = self.learner
        views = learner.views()
        with torch.no_grad():
            forward = _count(lambda: learner.target(views, branch="adv"))
        strategy = self._strategy()
        attack = _count(lambda: learner._attack(learner.batch(), strategy)) / forward
        return {
            "attack": attack,
            "step": _count(lambda: learner.step(strategy)) / forward,
            "mean_steps": strategy.steps.float().mean().item(),
            "flops_per_forward_per_view": forward / len(views),
        }

    def saved_bytes_per_view(self) -> float:
        """Return the bytes per view that a training pass (clean and adversarial) keeps for its backward pass."""
        learner, seen = self.learner, {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        views = learner.views()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses = learner.objective(learner.encode, learner.batch(), views)
        parameters = {p.untyped_storage().data_ptr() for p in learner.target.parameters()}
        del losses
        return sum(size for pointer, size in seen.items() if pointer not in parameters) / len(views)

    def _strategy(self) -> AttackStrategy:
        count, device = self.learner.views_per_step, self.learner.device
        if self.budgets == "fixed":
            return AttackStrategy.constant(count, device=device)
        sizes = self.learner.space.sizes
        if self.budgets == "max":
            actions = torch.tensor([size - 1 for size in sizes]).repeat(count, 1)
        else:
            columns = [torch.randint(size, (count,), generator=self._generator) for size in sizes]
            actions = torch.stack(columns, dim=1)
        return self.learner.space.decode(actions.to(device))


def compare(
    modes: list[str], base: Mapping[str, Any], dataset: ImageDataset, budgets: str, repeats: int
) -> dict[str, dict[str, Any]]:
    """Run every mode in turn, ``repeats`` times, on the same images and budgets; the counted step before warms up.

    Returns:
        By mode: median milliseconds of the step and its phases, their spread (minimum, maximum), views per second,
        the median over rounds of plain/mode for step and attack, forward-equivalents and memory.
    """
    contestants = [Contestant(mode, base, dataset, budgets) for mode in modes]
    counts = {c.mode: c.forward_equivalents() for c in contestants}
    memory = {c.mode: c.saved_bytes_per_view() for c in contestants}
    rounds: dict[str, list[dict[str, float]]] = {mode: [] for mode in modes}
    for contestant in contestants:
        contestant.clock.take()
    for _ in range(repeats):
        for contestant in contestants:
            rounds[contestant.mode].append(contestant.step())
    return {c.mode: _summary(c, rounds, counts[c.mode], memory[c.mode]) for c in contestants}


def matmul_ceiling(device: torch.device, dtype: torch.dtype, size: int = 2048, repeats: int = 5) -> float:
    """Return the FLOP/s of a square matrix product of random numbers: the median of ``repeats``."""
    source = torch.Generator().manual_seed(0)
    left = torch.randn(size, size, generator=source).to(device, dtype)
    right = torch.randn(size, size, generator=source).to(device, dtype)
    clock, seconds = Clock(device), []
    for _ in range(repeats + 1):
        clock.wrap("matmul", torch.matmul)(left, right)
        seconds.append(clock.take()["matmul"])
    return 2 * size**3 / statistics.median(seconds[1:])


def _summary(
    contestant: Contestant,
    rounds: dict[str, list[dict[str, float]]],
    counts: dict[str, float],
    memory: float,
) -> dict[str, Any]:
    mine, views = rounds[contestant.mode], contestant.learner.views_per_step
    step = statistics.median(entry["step"] for entry in mine)
    attack = statistics.median(entry["attack"] for entry in mine)
    summary: dict[str, Any] = {
        "milliseconds": {
            phase: 1000 * statistics.median(entry.get(phase, 0.0) for entry in mine) for phase in (*PHASES, "step")
        },
        "step_spread_milliseconds": [1000 * min(e["step"] for e in mine), 1000 * max(e["step"] for e in mine)],
        "views_per_second": views / step,
        "attack_flops_per_second": counts["attack"] * counts["flops_per_forward_per_view"] * views / attack,
        "forward_equivalents": counts,
        "saved_bytes_per_view": memory,
    }
    if "plain" in rounds:
        for part in ("step", "attack"):
            pairs = zip(rounds["plain"], mine, strict=True)
            summary[f"{part}_speedup"] = statistics.median(plain[part] / own[part] for plain, own in pairs)
    if contestant.learner.device.type == "cuda":
        summary["peak_memory_bytes"] = torch.cuda.max_memory_allocated(contestant.learner.device)
    return summary


def _count(work: Any) -> float:
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return float(counter.get_total_flops())
