"""A whole training run: the loop around a learner and a policy, and everything it writes."""

import copy
import logging
import platform
import time
from collections.abc import Mapping
from typing import Any

import torch
from tqdm.auto import tqdm

from astra_env import __version__
from astra_env.compute import deterministic_algorithms
from astra_env.config.reading import to_dict
from astra_env.config.schema import ExperimentConfig
from astra_env.distributed import SharedRun
from astra_env.errors import CheckpointError, Diverged
from astra_env.evaluation import ProbeResult, probe_learner
from astra_env.learner.protocol import Learner, Policy, StepReport, interact
from astra_env.storage.run_directory import RunDirectory
from astra_env.storage.state import UNFIT, one_line, require_count, require_mapping, require_tensor
from astra_env.strategy import StrategyCounts
from astra_env.training.health import HealthWatch, require_finite
from astra_env.training.interrupts import GracefulStop

logger = logging.getLogger(__name__)

MAX_ROLLBACKS = 5
HISTOGRAM_COUNT = 50
"""How many strategy histograms a run writes."""
SHOWN_PAIRS = 8


class Trainer:
    """Runs a learner under a policy to the end of its budget and keeps the run directory.

    Where the learner is spread over ranks, each has its trainer; rank 0's logs, writes and probes.

    Args:
        config: the run's configuration.
        learner: what is trained.
        policy: who chooses the attacks.
        run: where everything is written.
        progress: show a live progress bar.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        learner: Learner,
        policy: Policy,
        run: RunDirectory | SharedRun,
        *,
        progress: bool = True,
    ) -> None:
        self.config = config
        self.learner = learner
        self.policy = policy
        self.run = run
        self.world = learner.world
        self.progress = progress and self.world.main
        self.counts = StrategyCounts(learner.space, learner.device)
        self.rollbacks = 0
        self._health = HealthWatch()
        self._seconds = 0.0
        self._trained = 0

    def restore(self) -> bool:
        """Continue from the run directory's newest whole checkpoint; returns whether there was one.

        Raises:
            CheckpointError: when the checkpoint belongs to another architecture, data set or policy.
        """
        state = self.run.restore()
        if state is None:
            return False
        self._load(state)
        return True

    def fit(self) -> int:
        """Train until the budget is used up; returns 0, or 128 + the signal's number when a signal asked to stop.

        Raises:
            Diverged: when the loss is not finite and ``run.on_divergence`` is "raise", or rolling back did not help.
        """
        kernels = deterministic_algorithms(self.config.run.deterministic)
        with kernels, GracefulStop() as stop:
            if self.learner.step_count == 0:
                self._save()
            number = self._prepare(stop) or self._train(stop)
        return 128 + number if number else 0

    def finish(self) -> dict[str, Any]:
        """Draw the figures, measure the network when configured, and write and return ``summary.json``.

        Of several ranks only rank 0 does, and needs no other for it.
        """
        from astra_env.plotting.training import plot_losses, plot_strategies

        metrics = self.run.metrics()
        if metrics:
            plot_strategies(metrics, self.learner.space, self.run.path / "strategy.png")
            plot_losses(metrics, self.run.path / "losses.png")
        with deterministic_algorithms(self.config.run.deterministic):
            enabled = self.config.probe.enabled
            result = probe_learner(self.learner, self.config, progress=self.progress) if enabled else None
        summary = {
            "steps": self.learner.step_count,
            "final": metrics[-1] if metrics else {},
            "measured": "classifier" if self.learner.classifies else "linear probe",
            "probe": None if result is None else probe_summary(result),
            "attack_steps": int(self.learner.attack_steps),
            "views_per_step": self.learner.views_per_step,
            "rollbacks": self.rollbacks,
            "parameters": sum(p.numel() for p in self.learner.target.parameters()),
            "timing": self._timing(),
            "versions": versions(),
        }
        self.run.write_summary(summary)
        return summary

    def _prepare(self, stop: GracefulStop) -> int:
        """Do what precedes the first step; returns the number of the signal that asked to stop, or 0."""
        left = self.learner.left_to_prepare
        if not left:
            return 0
        with tqdm(total=left, desc="preparing", disable=not self.progress, dynamic_ncols=True) as bar:
            for done in range(1, left + 1):
                self.learner.prepare()
                bar.update()
                number = self.world.maximum(stop.signal_number or 0)
                if number or done == left or done % self.config.run.checkpoint_every == 0:
                    self._save()
                if number:
                    return number
        return 0

    def _train(self, stop: GracefulStop) -> int:
        """Train to the end; returns the number of the signal that asked to stop, or 0."""
        with self._bar() as bar:
            while not self.learner.finished:
                try:
                    self._step(bar)
                    number = self.world.maximum(stop.signal_number or 0)
                    if number or self.learner.finished:
                        self._save()
                except Diverged as error:
                    self._roll_back(error)
                    bar.n = self.learner.step_count
                    number = self.world.maximum(stop.signal_number or 0)
                if number:
                    return number
        return 0

    def _step(self, bar: tqdm) -> None:
        started = time.perf_counter()
        report = interact(self.learner, self.policy)
        self.counts.add(report.strategy)
        done, options = self.learner.step_count, self.config.run
        if report.step % options.log_every == 0 or self.learner.finished:
            scalars = report.scalars()
            self._health.look(report.step, scalars)
            self._seconds += time.perf_counter() - started
            self._log(report, scalars)
            bar.set_postfix(_postfix(scalars, bar, self.learner.views_per_step), refresh=False)
        else:
            self._seconds += time.perf_counter() - started
        self._trained += 1
        bar.update()
        if done % options.checkpoint_every == 0 or (options.keep_every and done % options.keep_every == 0):
            report.scalars()
            kept = options.keep_every and done % options.keep_every == 0
            self._save(keep_as=f"step_{done:08d}" if kept else None)

    def _log(self, report: StepReport, scalars: dict[str, float]) -> None:
        shares = self.counts.take()
        if not self.world.main:
            return
        self.run.log(report.step, {**scalars, **shares})
        writer, step = self.run.writer, report.step
        if self._trained:
            writer.add_scalar("throughput/views_per_second", self._throughput(), step)
        every = max(1, self.learner.total_steps // HISTOGRAM_COUNT)
        if report.strategy is not None and (step // self.config.run.log_every) % every == 0:
            writer.add_histogram("strategy/epsilon_255", report.strategy.epsilon.float() * 255, step)
            writer.add_histogram("strategy/steps", report.strategy.steps, step)
            writer.add_histogram("strategy/step_size_255", report.strategy.step_size.float() * 255, step)
        image_every = self.config.run.image_every
        if (image_every and step % image_every == 0) or self.learner.finished:
            pairs = torch.stack((report.views[:SHOWN_PAIRS], report.adversarial[:SHOWN_PAIRS]), dim=1)
            writer.add_images("views/clean_and_adversarial", pairs.flatten(0, 1), step)

    def _save(self, keep_as: str | None = None) -> None:
        require_finite(self.learner.target, self.learner.step_count)
        self.run.save(self._state(), keep_as=keep_as)

    def _state(self) -> dict[str, Any]:
        get_state = getattr(self.policy, "state_dict", None)
        return {
            **self.learner.state_dict(),
            "policy": get_state() if get_state is not None else {},
            "policy_name": self.config.policy,
            "counts": self.counts.state(),
            "rollbacks": self.rollbacks,
            "timing": {"seconds": self._seconds, "steps": self._trained},
            "config": to_dict(self.config),
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        """Take over a checkpoint whole; on any error everything is as before."""
        self._check(state)
        before = copy.deepcopy(self._state())
        try:
            self._take(state)
        except UNFIT as error:
            self._take(before)
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"checkpoint: does not fit policy {self.config.policy!r} ({one_line(error)})"
            ) from error

    def _check(self, state: Mapping[str, Any]) -> None:
        if state.get("policy_name") != self.config.policy:
            raise CheckpointError(
                f"checkpoint: its attacks were chosen by policy {state.get('policy_name')!r}, the configuration says "
                f"{self.config.policy!r}"
            )
        require_mapping("policy", state.get("policy"))
        counts, own = state.get("counts"), self.counts.state()
        if not isinstance(counts, list) or len(counts) != len(own):
            raise CheckpointError(f"checkpoint: counts: expected {len(own)} tensors; another configuration's state")
        for given, expected in zip(counts, own, strict=True):
            require_tensor("counts", given, expected)
        require_count("rollbacks", state.get("rollbacks"))

    def _take(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(dict(state))
        load_state = getattr(self.policy, "load_state_dict", None)
        if load_state is not None and state["policy"]:
            load_state(state["policy"])
        self.counts.load(state["counts"])
        self.rollbacks = state["rollbacks"]
        timing = state.get("timing", {})
        self._seconds, self._trained = float(timing.get("seconds", 0.0)), int(timing.get("steps", 0))

    def _roll_back(self, error: Diverged) -> None:
        if self.config.run.on_divergence == "raise" or self.rollbacks >= MAX_ROLLBACKS:
            raise error
        rollbacks = self.rollbacks + 1
        self.restore()
        self.learner.learning_rate_scale = 0.5**rollbacks
        self.rollbacks = rollbacks
        logger.warning(
            "%s; back at step %d, learning rate halved to %.3g",
            error,
            self.learner.step_count,
            self.learner.learning_rate,
        )
        self._save()

    def _bar(self) -> tqdm:
        return tqdm(
            total=self.learner.total_steps,
            initial=self.learner.step_count,
            desc=self.run.path.name,
            unit="step",
            disable=not self.progress,
            dynamic_ncols=True,
        )

    def _throughput(self) -> float:
        return self._trained * self.learner.views_per_step / max(self._seconds, 1e-9)

    def _timing(self) -> dict[str, float]:
        timing = {"seconds": round(self._seconds, 3), "steps": self._trained}
        if self._trained:
            timing["views_per_second"] = round(self._throughput(), 2)
        if self.learner.device.type == "cuda":
            timing["peak_memory_bytes"] = torch.cuda.max_memory_allocated(self.learner.device)
        return timing


def probe_summary(result: ProbeResult) -> dict[str, Any]:
    """Return a probe's accuracies as plain values."""
    return {
        "clean": result.clean.as_dict(),
        "pgd": {f"{255 * epsilon:g}/255": accuracy.as_dict() for epsilon, accuracy in result.robust.items()},
    }


def versions() -> dict[str, str]:
    """Return the versions a result depends on."""
    return {
        "astra_env": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
    }


def _postfix(scalars: dict[str, float], bar: tqdm, views: int) -> dict[str, str]:
    shown = {"loss": f"{scalars['loss']:.3f}", "reward": f"{scalars['reward']:+.3f}"}
    if "mean_epsilon" in scalars:
        shown["eps"] = f"{255 * scalars['mean_epsilon']:.1f}/255"
    rate = bar.format_dict["rate"]
    if rate:
        shown["views/s"] = f"{rate * views:.0f}"
    return shown
