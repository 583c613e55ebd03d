"""Timing the phases of a training step on the host and on CUDA."""

import copy
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from astra_env.learner.contrastive import ContrastiveLearner

PHASES = ("load", "augment", "policy", "attack", "reward", "train", "optimiser")


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
    learner.minibatches.dataset = images = copy.copy(learner.minibatches.dataset)
    object.__setattr__(images, "gather", clock.wrap("load", images.gather))  # it is frozen
    learner.gradients.backward = clock.wrap("train", learner.gradients.backward)  # type: ignore[method-assign]
    for owner, name, phase in (
        (learner, "augment", "augment"),
        (learner.adversary, "attack", "attack"),
        (learner.adversary, "judge", "reward"),
        (learner, "_gradient_norm", "train"),
        (learner, "_update", "optimiser"),
    ):
        setattr(owner, name, clock.wrap(phase, getattr(owner, name)))
