"""The one training loop: steps, checkpoints, ways back, signals and a bar. Everything else is a callback."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from astra_env.compute import deterministic_algorithms
from astra_env.config.options import RunOptions
from astra_env.distributed import SharedRun, World
from astra_env.errors import Diverged
from astra_env.storage.run_directory import RunDirectory
from astra_env.storage.state import load_or_undo, require_count
from astra_env.training.health import HealthWatch, require_finite
from astra_env.training.interrupts import GracefulStop

logger = logging.getLogger(__name__)

MAX_ROLLBACKS = 5


class Callback:
    """What happens beside the training; override what is needed. Every process of a run calls it alike."""

    def on_step(self, loop: "Loop", report: Any) -> None:
        """Act after a step; ``report`` is what it returned. Raise Diverged to stop the run or send it back."""

    def on_checkpoint(self, loop: "Loop", report: Any) -> None:
        """Act before a checkpoint is written after a step. Raise Diverged for what is not worth keeping."""

    def on_end(self, loop: "Loop") -> None:
        """Act after the last step of the run; not when a signal ended it before."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this callback, under names that nothing else uses."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state; raises CheckpointError when it does not fit."""


class Loop(ABC):
    """Trains a learner to the end of its budget and keeps what it does safe.

    Where the learner is spread over several processes, each has its loop; only rank 0 writes.

    Args:
        learner: what is trained: what :class:`astra_env.learner.protocol.Learner` says of counts, rates and states.
        network: what must stay finite.
        options: how often to write, and what to do when training diverges.
        title: name of the progress bar.
        run: where everything is written; None writes nothing.
        callbacks: what happens beside the training, in this order.
        progress: show the bar; None for only on a terminal.

    Attributes:
        rollbacks: how often a run that diverged went back to its last checkpoint.
        seconds: time spent in :meth:`timed`, by all processes one after the other that have continued the run.
        trained: steps taken in that time.
        bar: the progress bar.
    """

    bar: tqdm

    def __init__(
        self,
        learner: Any,
        network: nn.Module,
        options: RunOptions,
        title: str,
        run: RunDirectory | SharedRun | None = None,
        *,
        callbacks: Sequence[Callback] = (),
        progress: bool | None = True,
    ) -> None:
        self.learner = learner
        self.network = network
        self.options = options
        self.title = title
        self.run = run
        self.callbacks = list(callbacks)
        self.world: World = learner.world
        self.progress = progress if self.world.main else False
        self.health = HealthWatch()
        self.rollbacks = 0
        self.seconds = 0.0
        self.trained = 0

    @abstractmethod
    def step(self) -> Any:
        """Take one training step and return its report; raises Diverged."""

    def make_bar(self) -> tqdm:
        """Return the progress bar, which stands at :attr:`position`."""
        count = {"total": self.learner.total_steps, "initial": self.position, "unit": "step"}
        hidden = None if self.progress is None else not self.progress
        return tqdm(**count, desc=self.title, disable=hidden, dynamic_ncols=True)

    @property
    def position(self) -> int:
        """How far the run has come, in the unit of the bar."""
        return int(self.learner.step_count)

    def prepare(self, stop: GracefulStop) -> int:
        """Do what precedes the first step; returns the number of the signal that asked to stop, or 0."""
        return 0

    def train(self) -> int:
        """Train until the budget is used up; returns 0, or 128 + the signal's number when a signal asked to stop.

        Raises:
            Diverged: when the loss is not finite and ``run.on_divergence`` is "raise", nothing is written, or going
                back did not help.
        """
        with deterministic_algorithms(self.options.deterministic), GracefulStop() as stop:
            if self.learner.step_count == 0:
                self.save()
            number = self.prepare(stop) or self._take_steps(stop)
            if number:
                return 128 + number
            self._tell("on_end")
        return 0

    def _take_steps(self, stop: GracefulStop) -> int:
        """Train to the end; returns the number of the signal that asked to stop, or 0."""
        with self.make_bar() as self.bar:
            while not self.learner.finished:
                try:
                    with self.timed():
                        report = self.step()
                    self.trained += 1
                    self._tell("on_step", report)
                    number = self.signalled(stop)
                    self._save_if_due(report, stopping=number > 0)
                except Diverged as error:
                    self._roll_back(error)
                    number = self.signalled(stop)
                self.bar.update(self.position - self.bar.n)
                if number:
                    return number
        return 0

    def signalled(self, stop: GracefulStop) -> int:
        """Return the number of the signal that any process got, or 0: all hear of it together."""
        return self.world.maximum(stop.signal_number or 0)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of what is done inside as training."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started

    @property
    def steps_per_second(self) -> float:
        """How fast the training was so far."""
        return self.trained / max(self.seconds, 1e-9)

    def save(self, keep_as: str | None = None) -> None:
        """Write a checkpoint, for good under the name ``keep_as``; raises Diverged for weights that are not finite."""
        if self.run is None:
            return
        require_finite(self.network, self.learner.step_count)
        self.run.save(self.state_dict(), keep_as=keep_as)

    def _save_if_due(self, report: Any, *, stopping: bool) -> None:
        done, every, keep_every = self.learner.step_count, self.options.checkpoint_every, self.options.keep_every
        kept = keep_every > 0 and done % keep_every == 0
        if stopping or kept or self.learner.finished or (every is not None and done % every == 0):
            self._tell("on_checkpoint", report)
            self.save(keep_as=f"step_{done:08d}" if kept else None)

    def restore(self) -> bool:
        """Continue from the run directory's newest whole checkpoint; returns whether there was one.

        Raises:
            CheckpointError: when the checkpoint belongs to something else; everything is then as before.
        """
        state = None if self.run is None else self.run.restore()
        if state is not None:
            self.load_state_dict(state)
        return state is not None

    def _roll_back(self, error: Diverged) -> None:
        """Continue from the last checkpoint at half the learning rate, if that is wanted, possible and not hopeless."""
        if self.run is None or self.options.on_divergence == "raise" or self.rollbacks >= MAX_ROLLBACKS:
            raise error
        rollbacks, seconds, trained = self.rollbacks + 1, self.seconds, self.trained
        self.restore()
        self.rollbacks, self.seconds, self.trained = rollbacks, seconds, trained
        self.learner.learning_rate_scale = 0.5**rollbacks
        done, rate = self.learner.step_count, self.learner.learning_rate
        logger.warning("%s; back at step %d, learning rate halved to %.3g", error, done, rate)
        self.save()

    def _tell(self, event: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *arguments)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds: learner, callbacks and the loop's own counts."""
        state = self.learner.state_dict()
        for callback in self.callbacks:
            state |= callback.state_dict()
        return {**state, "rollbacks": self.rollbacks, "timing": {"seconds": self.seconds, "steps": self.trained}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a checkpoint whole; raises CheckpointError, and changes nothing, when it does not fit."""
        load_or_undo(state, self.state_dict(), self.take, "this run")

    def take(self, state: Mapping[str, Any]) -> None:
        """Take a state over part by part; what raises half-way is undone by :meth:`load_state_dict`."""
        rollbacks, timing = require_count("rollbacks", state.get("rollbacks")), state.get("timing", {})
        self.learner.load_state_dict(dict(state))
        for callback in self.callbacks:
            callback.load_state_dict(state)
        self.rollbacks = rollbacks
        self.seconds, self.trained = float(timing.get("seconds", 0.0)), int(timing.get("steps", 0))
