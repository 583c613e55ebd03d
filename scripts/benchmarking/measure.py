"""One process, all contestants in turn: time, arithmetic and memory of a training step."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.data import ImageDataset
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.strategy import AttackStrategy
from benchmarking.clock import PHASES, Clock, attach
from benchmarking.memory import bytes_per_view
from benchmarking.plain_step import PlainLearner

MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "exact": {},
    "channels_last": {"learner.channels_last": True},
    "folded": {"learner.channels_last": True, "learner.fold_batchnorm": True},
    "bf16": {"learner.precision": "bf16"},
    "tf32": {"learner.tf32": True},
    "fast": {"learner.fast": True},
    "compile": {"learner.fast": True, "learner.compile": "default"},
    "cuda_graphs": {"learner.fast": True, "learner.compile": "reduce-overhead"},
}
"""Contestants by name and what they set; "plain" is the step without any of the savings."""

CIFAR10_VIEWS = 1000 * 97 * 1024
"""Views of 1000 epochs of CIFAR-10 in whole batches of 512 images."""


class Contestant:
    """A learner with its clock; steps under strategies drawn from its own generator."""

    def __init__(
        self, mode: str, base: Mapping[str, Any], dataset: ImageDataset, budgets: str, **overrides: Any
    ) -> None:
        config = load_config(ExperimentConfig, "cifar10", {**base, **MODES[mode], **overrides})
        self.learner = (PlainLearner if mode == "plain" else ContrastiveLearner)(config, dataset)
        self.clock = Clock(self.learner.device)
        self.mode = mode
        self.budgets = budgets
        self._generator = torch.Generator().manual_seed(0)
        attach(self.learner, self.clock)

    def step(self) -> dict[str, float]:
        """Run one step; returns seconds by phase and in total."""
        cuda = self.learner.device if self.learner.device.type == "cuda" else None
        if cuda is not None:
            torch.cuda.reset_peak_memory_stats(cuda)
        self.clock.take()
        self.learner.views()
        strategy = self.clock.wrap("policy", self._strategy)()
        self.clock.wait()
        started = time.perf_counter()
        self.learner.step(strategy)
        self.clock.wait()
        total, seconds = time.perf_counter() - started, self.clock.take()
        outside = sum(seconds.get(phase, 0.0) for phase in ("load", "augment", "policy"))
        peak = 0.0 if cuda is None else float(torch.cuda.max_memory_allocated(cuda))
        return {**seconds, "step": total + outside, "peak_bytes": peak}

    def forward_equivalents(self) -> dict[str, float]:
        """Count the operations of one step and of its attack, in forward passes of all views."""
        learner = self.learner
        views = learner.views()
        with torch.no_grad():
            forward = _count(lambda: learner.target(views, branch="adv"))
        strategy = self._strategy()
        attack = _count(lambda: learner.adversary.attack(learner.batch(), strategy)) / forward
        return {
            "attack": attack,
            "step": _count(lambda: learner.step(strategy)) / forward,
            "mean_steps": strategy.steps.float().mean().item(),
            "flops_per_forward_per_view": forward / len(views),
        }

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
    modes: Sequence[str],
    base: Mapping[str, Any],
    dataset: ImageDataset,
    budgets: str,
    repeats: int,
    *,
    ceilings: Mapping[str, float] | None = None,
    progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Run every mode in turn, ``repeats`` times, on the same images and budgets; the counted step before warms up.

    Args:
        modes: names of :data:`MODES`.
        base: dotted settings of every mode.
        dataset: the images.
        budgets: "uniform", "fixed" or "max".
        repeats: rounds.
        ceilings: measured FLOP/s of matrix products by "fp32" and "bf16", to compare the attack with.
        progress: show a progress bar.

    Returns:
        By mode: median milliseconds of the step and its phases, their spread (minimum, maximum), views per second,
        the median over rounds of plain/mode for step and attack, forward-equivalents, memory, and the arithmetic
        reached in the attack, as a percentage of the ceiling of its precision.
    """
    bar = tqdm(total=len(modes) * (repeats + 1), unit="step", disable=not progress)
    contestants, counts, memory = [], {}, {}
    for mode in modes:
        bar.set_description(f"{mode}: warm-up")
        # Operations inside compiled code cannot be counted, so they are without it.
        contestant = Contestant(mode, base, dataset, budgets, **{"learner.compile": "none"})
        memory[mode] = bytes_per_view(contestant.learner)
        counts[mode] = contestant.forward_equivalents()
        compiled = "learner.compile" in MODES[mode]
        if compiled:
            contestant = Contestant(mode, base, dataset, budgets)
            contestant.step()
        contestants.append(contestant)
        bar.update()
    rounds: dict[str, list[dict[str, float]]] = {mode: [] for mode in modes}
    for _ in range(repeats):
        for contestant in contestants:
            bar.set_description(contestant.mode)
            rounds[contestant.mode].append(contestant.step())
            bar.update()
    bar.close()
    return {
        c.mode: _summary(c, rounds, counts[c.mode], memory[c.mode], ceilings if ceilings is not None else {})
        for c in contestants
    }


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
    rounds: Mapping[str, list[dict[str, float]]],
    counts: dict[str, float],
    memory: dict[str, float],
    ceilings: Mapping[str, float],
) -> dict[str, Any]:
    mine, views = rounds[contestant.mode], contestant.learner.views_per_step
    median = {
        phase: statistics.median(entry.get(phase, 0.0) for entry in mine) for phase in (*PHASES, "step", "peak_bytes")
    }
    rate = counts["attack"] * counts["flops_per_forward_per_view"] * views / median["attack"]
    summary: dict[str, Any] = {
        "milliseconds": {phase: 1000 * median[phase] for phase in (*PHASES, "step")},
        "step_spread_milliseconds": [1000 * min(e["step"] for e in mine), 1000 * max(e["step"] for e in mine)],
        "views_per_second": views / median["step"],
        "data_share": (median["load"] + median["augment"]) / median["step"],
        "attack_flops_per_second": rate,
        "forward_equivalents": counts,
        "saved_bytes_per_view": memory,
        "hours_for_1000_epochs_of_cifar10": CIFAR10_VIEWS * median["step"] / views / 3600,
    }
    precision = "bf16" if contestant.learner.autocast is torch.bfloat16 else "fp32"
    if precision in ceilings:
        summary["attack_percent_of_ceiling"] = 100 * rate / ceilings[precision]
    if "plain" in rounds:
        for part in ("step", "attack"):
            pairs = zip(rounds["plain"], mine, strict=True)
            summary[f"{part}_speedup"] = statistics.median(plain[part] / own[part] for plain, own in pairs)
    if contestant.learner.device.type == "cuda":
        summary["peak_memory_bytes"] = int(median["peak_bytes"])
    return summary


def _count(work: Any) -> float:
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return float(counter.get_total_flops())
