"""What a run under a policy's attacks writes while it trains: scalars, shares of the chosen attacks, pictures."""

from collections.abc import Mapping
from typing import Any

import torch

from astra_env.config.schema import RunConfig
from astra_env.learner.protocol import StepReport
from astra_env.storage.state import require_state
from astra_env.strategy import StrategyCounts, StrategySpace
from astra_env.training.loop import Callback, Loop

HISTOGRAM_COUNT = 50
"""How many strategy histograms a run writes."""
SHOWN_PAIRS = 8


class Metrics(Callback):
    """Writes the scalars of every ``log_every``-th step, and how often each attack was chosen since the last one."""

    def __init__(self, options: RunConfig, space: StrategySpace, device: torch.device) -> None:
        self.options = options
        self.counts = StrategyCounts(space, device)

    def on_step(self, loop: Loop, report: StepReport) -> None:
        """Count the attacks; log, watch the health and show on the bar what is due."""
        self.counts.add(report.strategy)
        if report.step % self.options.log_every and not loop.learner.finished:
            return
        with loop.timed():
            scalars = report.scalars()
        loop.health.look(report.step, scalars)
        shares = self.counts.take()
        if loop.world.main and loop.run is not None:
            loop.run.log(report.step, {**scalars, **shares, "compute_spent": loop.learner.compute_spent})
            _draw(loop, report, self.options)
        loop.bar.set_postfix(_shown(scalars, loop), refresh=False)

    def on_checkpoint(self, loop: Loop, report: StepReport) -> None:
        """Raise Diverged when loss or gradient of the step are not finite, which nobody may have looked at."""
        report.scalars()

    def state_dict(self) -> dict[str, Any]:
        """Return the counts since the last line."""
        return {"counts": self.counts.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue to count; raises CheckpointError for counts of another grid."""
        require_state(state, self.state_dict(), others=True)
        self.counts.load(state["counts"])


def _draw(loop: Loop, report: StepReport, options: RunConfig) -> None:
    """Add to TensorBoard what is no line of metrics: speed, histograms of the attacks, images."""
    writer, step, learner = loop.run.writer, report.step, loop.learner  # type: ignore[union-attr]
    if loop.trained > 1:
        writer.add_scalar("throughput/views_per_second", loop.steps_per_second * learner.views_per_step, step)
    every = max(1, learner.total_steps // HISTOGRAM_COUNT)
    if report.strategy is not None and (step // options.log_every) % every == 0:
        writer.add_histogram("strategy/epsilon_255", report.strategy.epsilon.float() * 255, step)
        writer.add_histogram("strategy/steps", report.strategy.steps, step)
        writer.add_histogram("strategy/step_size_255", report.strategy.step_size.float() * 255, step)
    if (options.image_every and step % options.image_every == 0) or learner.finished:
        pairs = torch.stack((report.views[:SHOWN_PAIRS], report.adversarial[:SHOWN_PAIRS]), dim=1)
        writer.add_images("views/clean_and_adversarial", pairs.flatten(0, 1), step)


def _shown(scalars: Mapping[str, float], loop: Loop) -> dict[str, str]:
    shown = {"loss": f"{scalars['loss']:.3f}", "reward": f"{scalars['reward']:+.3f}"}
    if "mean_epsilon" in scalars:
        shown["eps"] = f"{255 * scalars['mean_epsilon']:.1f}/255"
    return {**shown, "views/s": f"{loop.steps_per_second * loop.learner.views_per_step:.0f}"}
