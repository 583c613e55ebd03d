"""A training run under a policy's attacks: the loop around learner and policy, and what it leaves behind."""

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from astra_env import __version__
from astra_env.compute import deterministic_algorithms
from astra_env.config.reading import to_dict
from astra_env.config.schema import ExperimentConfig
from astra_env.distributed import SharedRun
from astra_env.errors import CheckpointError
from astra_env.evaluation import ProbeResult, probe_learner
from astra_env.learner.protocol import Learner, Policy, StepReport, interact
from astra_env.storage.run_directory import RunDirectory
from astra_env.storage.state import require_mapping
from astra_env.training.callbacks import Metrics
from astra_env.training.interrupts import GracefulStop
from astra_env.training.loop import Callback, Loop


class Trainer(Loop):
    """Runs a learner under a policy to the end of its budget and keeps the run directory.

    Where the learner is spread over ranks, each has its trainer; rank 0's logs, writes and probes.

    Args:
        config: the run's configuration.
        learner: what is trained.
        policy: who chooses the attacks.
        run: where everything is written.
        callbacks: what happens beside the training, after the metrics of a step are written.
        progress: show a live progress bar.
    """

    learner: Learner
    run: RunDirectory | SharedRun

    def __init__(
        self,
        config: ExperimentConfig,
        learner: Learner,
        policy: Policy,
        run: RunDirectory | SharedRun,
        *,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
    ) -> None:
        metrics = Metrics(config.run, learner.space, learner.device)
        everything = [metrics, *callbacks]
        super().__init__(
            learner, learner.target, config.run, run.path.name, run, callbacks=everything, progress=progress
        )
        self.config = config
        self.policy = policy

    def step(self) -> StepReport:
        """Let the policy choose the attacks of one step, and learn."""
        return interact(self.learner, self.policy)

    def fit(self) -> int:
        """Train until the budget is used up; see :meth:`train`."""
        return self.train()

    def make_bar(self) -> tqdm:
        """Return the progress bar; it counts F where the length of the training is a budget of them."""
        bar, budget = super().make_bar(), self.config.learner.budget
        if budget is not None:
            bar.unit, bar.total = "F", round(budget)
        return bar

    @property
    def position(self) -> int:
        """How far the run has come, in the unit of the bar."""
        budget = self.config.learner.budget
        return super().position if budget is None else min(round(budget), round(self.learner.compute_spent))

    def finish(self) -> dict[str, Any]:
        """Draw the figures, measure the network when configured, and write and return ``summary.json``.

        Of several ranks only rank 0 does, and needs no other for it.
        """
        from astra_env.plotting.training import plot_losses, plot_strategies

        metrics, spent = self.run.metrics(), self.learner.compute_spent
        if metrics:
            plot_strategies(metrics, self.learner.space, self.run.path / "strategy.png")
            plot_losses(metrics, self.run.path / "losses.png")
        with deterministic_algorithms(self.config.run.deterministic):
            enabled = self.config.probe.enabled
            result = probe_learner(self.learner, self.config, progress=bool(self.progress)) if enabled else None
        summary = {
            "steps": self.learner.step_count,
            "final": metrics[-1] if metrics else {},
            "measured": "classifier" if self.learner.classifies else "linear probe",
            "probe": None if result is None else probe_summary(result),
            "compute_spent": spent,
            "attack_steps": int(self.learner.attack_steps),
            "views_per_step": self.learner.views_per_step,
            "rollbacks": self.rollbacks,
            "parameters": sum(p.numel() for p in self.learner.target.parameters()),
            "timing": self._timing(),
            "versions": versions(),
        }
        self.run.write_summary(summary)
        return summary

    def prepare(self, stop: GracefulStop) -> int:
        """Do what precedes the first step; returns the number of the signal that asked to stop, or 0."""
        left = self.learner.left_to_prepare
        if not left:
            return 0
        with tqdm(total=left, desc="preparing", disable=not self.progress, dynamic_ncols=True) as bar:
            for done in range(1, left + 1):
                self.learner.prepare()
                bar.update()
                number = self.signalled(stop)
                if number or done == left or done % self.config.run.checkpoint_every == 0:
                    self.save()
                if number:
                    return number
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds, the policy included."""
        get_state = getattr(self.policy, "state_dict", None)
        state, meter = super().state_dict(), self.learner.meter
        if meter is not None and self.config.learner.budget is None:  # with a budget, the learner's state has it
            state["timing"]["spending"] = meter.state_dict()
        return {
            **state,
            "policy": get_state() if get_state is not None else {},
            "policy_name": self.config.policy,
            "config": to_dict(self.config),
        }

    def take(self, state: Mapping[str, Any]) -> None:
        """Take a state over part by part."""
        if state.get("policy_name") != self.config.policy:
            raise CheckpointError(
                f"checkpoint: its attacks were chosen by policy {state.get('policy_name')!r}, the configuration says "
                f"{self.config.policy!r}"
            )
        require_mapping("policy", state.get("policy"))
        super().take(state)
        spending = state.get("timing", {}).get("spending")
        if self.learner.meter is not None and spending is not None:
            self.learner.meter.load_state_dict(spending)
        load_state = getattr(self.policy, "load_state_dict", None)
        if load_state is not None and state["policy"]:
            load_state(state["policy"])

    def _timing(self) -> dict[str, float]:
        timing = {"seconds": round(self.seconds, 3), "steps": self.trained}
        if self.trained:
            timing["views_per_second"] = round(self.steps_per_second * self.learner.views_per_step, 2)
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
