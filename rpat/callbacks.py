"""What a supervised run does beside its steps: means of an epoch, validation and selection, the final measurement."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from astra_env.data import ImageDataset
from astra_env.evaluation.measures.accuracy import Accuracy
from astra_env.evaluation.measures.robustness import clean_accuracy, robust_accuracy
from astra_env.randomness import derive_seed
from astra_env.training.loop import Callback, Loop
from rpat.config import RPATConfig, TestConfig, ValidationConfig
from rpat.selection import Record, Selection


class EpochMeans(Callback):
    """Writes the means of the loss terms since the epoch began, and watches the health by them."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def on_step(self, loop: Loop, report: Mapping[str, Tensor]) -> None:
        """Add a step's terms; log what is due and begin anew when the epoch has ended."""
        for name, value in report.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        learner, ended = loop.learner, loop.learner.epoch_ended
        in_epoch = learner.sampler.state_dict()["position"]
        if loop.run is not None and (ended or in_epoch % loop.options.log_every == 0):
            means = {name: float(value) / in_epoch for name, value in self.sums.items()}
            loop.health.look(learner.step_count, means)
            line = {"epoch": learner.epoch - ended, **{f"train/{name}": mean for name, mean in means.items()}}
            loop.run.log(learner.step_count, {**line, "learning_rate": learner.optimizer.param_groups[0]["lr"]})
        if ended:
            self.sums = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the epoch so far."""
        return {"sums": self.sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue to add."""
        self.sums = {str(name): value.clone() for name, value in state["sums"].items()}


class Accuracies(Callback):
    """Measures on the validation slice, where the best network is selected, and in the end on the test images.

    Args:
        config: the run's configuration.
        validation: images held out of training.
        selection: where the best weights of the network and of its average are kept.

    Attributes:
        tested: what the selected network reached on the test images; empty before that, and when switched off.
    """

    def __init__(self, config: RPATConfig, validation: ImageDataset, selection: Selection) -> None:
        self.config = config
        self.validation = validation
        self.selection = selection
        self.tested: dict[str, Any] = {}

    def on_step(self, loop: Loop, report: Any) -> None:
        """Validate after the epochs that say so, and after the last one."""
        learner = loop.learner
        if learner.epoch_ended and (learner.finished or learner.epoch % self.config.validation.every == 0):
            with loop.timed():
                values = self.validate(loop, learner.epoch - 1)
            if loop.run is not None:
                loop.run.log(learner.step_count, {"epoch": learner.epoch - 1, **values})

    def on_end(self, loop: Any) -> None:
        """Measure the selected network on the test images, when that is switched on."""
        options = self.config.test
        if options.enabled:
            bar = self.config.run.progress and sys.stderr.isatty()
            more = {"max_images": options.max_images, "progress": bar}
            clean, robust = self._measure(loop, loop.selected(), loop.test, options, **more)
            self.tested = {"clean": clean.as_dict(), f"pgd_{options.steps}": robust.as_dict()}

    def validate(self, loop: Loop, epoch: int) -> dict[str, float]:
        """Return the accuracies of the network and its average; the selection keeps the weights of a new best."""
        networks = {"model": loop.network}
        if loop.learner.average is not None:
            networks["ema"] = loop.learner.average.module
        values: dict[str, float] = {}
        for name, network in networks.items():
            clean, robust = self._measure(loop, network, self.validation, self.config.validation)
            self.selection.offer(name, Record(epoch, robust.value, clean.value), network.state_dict())
            prefix = "validation" if name == "model" else f"validation_{name}"
            values |= {f"{prefix}/robust_accuracy": robust.value, f"{prefix}/clean_accuracy": clean.value}
        return values

    def state_dict(self) -> dict[str, Any]:
        """Return the best records; the weights have files of their own."""
        return {"selection": self.selection.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from stored records."""
        self.selection.load_state_dict(state["selection"])

    def _measure(
        self, loop: Loop, network: nn.Module, images: ImageDataset, options: ValidationConfig | TestConfig, **more: Any
    ) -> tuple[Accuracy, Accuracy]:
        """Return the accuracy on clean images and under PGD of training's radius, started alike in every epoch."""
        attack, seed = replace(self.config.budget, steps=options.steps), derive_seed(self.config.seed, "validation")
        more |= {"batch_size": options.batch_size, "world": loop.world}
        return clean_accuracy(network, images, **more), robust_accuracy(network, images, attack, seed=seed, **more)
