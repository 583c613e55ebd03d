"""Timing the phases of a training step on the host and on CUDA."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from astra_env.learner import ContrastiveLearner

PHASES = ("augment", "policy", "attack", "reward", "train", "optimiser")


class Clock:
    """Adds up seconds by phase, waiting for the device around each one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def wrap(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function`` with its time added to ``phase``."""

        def timed(*arguments: Any, **options: Any) -> Any:
            self.wait()
            started = time.perf_counter()
            result = function(*arguments, **options)
            self.wait()
            self.seconds[phase] += time.perf_counter() - started
            return result

        return timed

    def wait(self) -> None:
        """Wait until the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def take(self) -> dict[str, float]:
        """Return the seconds since the last call, by phase, and start again."""
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        return seconds


def attach(learner: ContrastiveLearner, clock: Clock) -> None:
    """Have the clock time each phase of this one learner's steps."""
    for name, phase in (
        ("augment", "augment"),
        ("_attack", "attack"),
        ("_reward", "reward"),
        ("objective", "train"),
        ("_differentiate", "train"),
        ("_update", "optimiser"),
    ):
        inner = getattr(learner, name)
        wrapped = _Objective(inner, clock) if name == "objective" else clock.wrap(phase, inner)
        setattr(learner, name, wrapped)


class _Objective:
    """An objective whose losses are timed; everything else is the objective's own."""

    def __init__(self, objective: Any, clock: Clock) -> None:
        self._inner = objective
        self._call = clock.wrap("train", objective)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
