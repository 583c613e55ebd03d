"""A whole supervised run: epochs, validation, selection, checkpoints, metrics, the final measurement."""

import logging
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from astra_env.compute import deterministic_algorithms
from astra_env.config.reading import load_config, to_yaml
from astra_env.data import ImageDataset
from astra_env.distributed import ALONE, SharedRun, World, shared_state
from astra_env.errors import CheckpointError, Diverged
from astra_env.evaluation.measures.robustness import clean_accuracy, robust_accuracy
from astra_env.randomness import derive_seed
from astra_env.storage.state import UNFIT, one_line, require_count
from astra_env.training.health import HealthWatch, require_finite
from astra_env.training.interrupts import GracefulStop
from rpat.config import PRESET_PACKAGE, RPATConfig
from rpat.learner import SupervisedLearner
from rpat.resuming import check_same_run, run_of
from rpat.selection import Record, Selection
from rpat.splits import load_splits, load_test

logger = logging.getLogger(__name__)
MAX_ROLLBACKS = 5


class Trainer:
    """Trains a classifier by one of the methods, with or without robust perception.

    Args:
        config: a configuration, preset name, YAML file or mapping; None for the defaults.
        overrides: values by dotted key, such as ``{"method": "trades", "optimizer.learning_rate": 0.05}``.
        world: the ranks that train together, each with its trainer; rank 0's logs and writes.

    Attributes:
        config: the configuration with every method-dependent value settled.
        learner: network, optimiser and everything a step changes.
        exit_status: 0, or what a signal that ended :meth:`fit` early asks for.
        rollbacks: how often a diverged run went back to its last checkpoint.

    Raises:
        ConfigError: naming the field, the value and the remedy.
        DataError: when the data cannot be read or is not labelled.
    """

    def __init__(
        self,
        config: RPATConfig | str | Path | Mapping[str, Any] | None = None,
        overrides: Mapping[str, Any] | None = None,
        world: World = ALONE,
    ) -> None:
        if not isinstance(config, RPATConfig):
            config = load_config(RPATConfig, config, overrides, package=PRESET_PACKAGE)
        else:
            config.validate()
        self.config = config.resolved()
        if self.config.run.threads is not None:
            torch.set_num_threads(self.config.run.threads)
        self.world = world
        self.device = world.resolve(self.config.device)
        train, self.validation = load_splits(self.config, self.device)
        if self.config.test.enabled:
            _ = self.test  # what the end needs is read before the first step
        self.learner = SupervisedLearner(self.config, train, self.device, world)
        self.exit_status = 0
        self._classes = self.config.network.num_classes or len(train.classes)
        self._selection = Selection(None, self._classes)
        self._sums: dict[str, Tensor] = {}
        self._seconds = 0.0
        self.rollbacks = 0
        self._health = HealthWatch()

    def fit(self, run_dir: str | Path | None = None, *, resume: bool = False, renew: bool = False) -> dict[str, Any]:
        """Train to the last epoch and measure the selected network on the test images.

        Args:
            run_dir: where configuration, metrics, checkpoints and summary go; None writes nothing.
            resume: continue the run in ``run_dir`` from its last checkpoint, bit for bit on a CPU.
            renew: write its configuration again, since its data has moved.

        Returns:
            The summary: best validation records, test accuracies with intervals, steps, seconds. ``finished`` is
            False when SIGINT or SIGTERM ended the run early; a checkpoint has then been written.

        Raises:
            RunDirectoryError: when the directory cannot be used.
            Diverged: when loss or gradient stop being finite and ``run.on_divergence`` is "raise", nothing is written,
                or going back did not help.
        """
        started = time.monotonic() - self._seconds
        place = nullcontext() if run_dir is None else run_of(self.learner, run_dir, resume=resume, renew=renew)
        kernels = deterministic_algorithms(self.config.run.deterministic)
        with place as run, kernels, GracefulStop() as stop:
            self._open(run, resume)
            if self.learner.steps_done == 0:
                self._save(run)
            with self._progress_bar() as bar:
                while self.learner.steps_done < self.learner.total_steps:
                    try:
                        self._accumulate(self.learner.step())
                        self._seconds = time.monotonic() - started
                        self._after_step(run)
                        if self._stopped(stop):
                            self._save(run)
                    except Diverged as error:
                        self._roll_back(run, error)
                        self._stopped(stop)
                    bar.n = self.learner.steps_done
                    bar.update(0)
                    if self.exit_status:
                        return self._summary(finished=False)
            summary = self._summary(finished=True) | {"test": self._measure()}
            if run is not None and self.world.main:
                from astra_env.plotting.style import save
                from astra_env.plotting.training import supervised_figure

                run.write_summary(summary)
                with run.directory.refusals():
                    save(supervised_figure(run.metrics()), run.path / "losses.png")
            return summary

    @cached_property
    def test(self) -> ImageDataset:
        """The test images."""
        return load_test(self.config, self.validation, self.device)

    def selected(self) -> nn.Module:
        """Return the learner's network with the selected weights: the average's best where there is one, in eval mode.

        The training state of the network is replaced; call it after the run, on every rank.
        """
        weights = self._selection.weights(self._selected_name()) if self.world.main else None
        self.learner.model.load_state_dict(shared_state(self.world, weights) or {})
        return self.learner.model.eval()

    def _stopped(self, stop: GracefulStop) -> bool:
        """Whether any rank was asked to stop; all hear of it together and leave with the same status."""
        signal_number = self.world.maximum(stop.signal_number or 0)
        self.exit_status = 128 + signal_number if signal_number else 0
        return signal_number != 0

    def _open(self, run: SharedRun | None, resume: bool) -> None:
        folder = run.checkpoints if run is not None else None
        self._selection = Selection(folder, self._classes, writes=self.world.main)
        state = run.restore() if run is not None and resume else None
        if state is None:
            return
        check_same_run(self.config, str(state.get("config", "")))
        self._load(state)

    def _load(self, state: Mapping[str, Any]) -> None:
        try:
            sums = {str(name): value.to(self.device) for name, value in state["sums"].items()}
            seconds, rollbacks = float(state["seconds"]), require_count("rollbacks", state.get("rollbacks", 0))
            self._selection.load_state_dict(state["selection"])
            self.learner.load_state_dict(state)
        except UNFIT as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"last.pt: not a checkpoint of such a run ({one_line(error)})") from error
        self._sums, self._seconds, self.rollbacks = sums, seconds, rollbacks

    def _roll_back(self, run: SharedRun | None, error: Diverged) -> None:
        """Continue from the last checkpoint at half the learning rate, if that is wanted, possible and not hopeless."""
        if run is None or self.config.run.on_divergence == "raise" or self.rollbacks >= MAX_ROLLBACKS:
            raise error
        rollbacks, seconds = self.rollbacks + 1, self._seconds
        self._load(run.restore() or {})
        self.rollbacks, self._seconds = rollbacks, seconds
        self.learner.learning_rate_scale = 0.5**rollbacks
        logger.warning("%s; back at step %d, learning rate halved", error, self.learner.steps_done)
        self._save(run)

    def _accumulate(self, terms: Mapping[str, Tensor]) -> None:
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=self.device)) + value

    def _after_step(self, run: SharedRun | None) -> None:
        learner, every = self.learner, self.config.run.log_every
        in_epoch = learner.sampler.state_dict()["position"]
        epoch_ended = in_epoch == learner.sampler.steps_per_epoch
        if run is not None and (epoch_ended or in_epoch % every == 0):
            means = {f"train/{name}": float(value) / in_epoch for name, value in self._sums.items()}
            self._health.look(learner.steps_done, {name.removeprefix("train/"): mean for name, mean in means.items()})
            rate = learner.optimizer.param_groups[0]["lr"]
            run.log(learner.steps_done, {"epoch": learner.epoch - epoch_ended, **means, "learning_rate": rate})
        if epoch_ended:
            self._sums = {}
            self._after_epoch(run, learner.epoch - 1)

    def _after_epoch(self, run: SharedRun | None, epoch: int) -> None:
        config, last = self.config, epoch + 1 == self.learner.epochs
        if last or (epoch + 1) % config.validation.every == 0:
            values = self._validate(epoch)
            if run is not None:
                run.log(self.learner.steps_done, {"epoch": epoch, **values})
        kept = config.run.keep_every > 0 and (epoch + 1) % config.run.keep_every == 0
        if last or kept or (epoch + 1) % config.run.checkpoint_every == 0:
            self._save(run, keep_as=f"epoch_{epoch + 1}" if kept else None)

    def _validate(self, epoch: int) -> dict[str, float]:
        """Measure the network and its average on the validation slice and keep whichever is a new best."""
        networks: dict[str, nn.Module] = {"model": self.learner.model}
        if self.learner.average is not None:
            networks["ema"] = self.learner.average.module
        values: dict[str, float] = {}
        for name, network in networks.items():
            batch = self.config.validation.batch_size
            clean = clean_accuracy(network, self.validation, batch_size=batch, world=self.world)
            robust = self._under_attack(network, self.validation, self.config.validation.steps, batch, None)
            record = Record(epoch, robust.value, clean.value)
            self._selection.offer(name, record, network.state_dict())
            prefix = "validation" if name == "model" else f"validation_{name}"
            values |= {f"{prefix}/robust_accuracy": robust.value, f"{prefix}/clean_accuracy": clean.value}
        return values

    def _measure(self) -> dict[str, Any]:
        """Return the selected network's accuracies on the test images; empty when switched off."""
        settings = self.config.test
        if not settings.enabled:
            return {}
        network, bar = self.selected(), self.config.run.progress and sys.stderr.isatty()
        size, limit = settings.batch_size, settings.max_images
        clean = clean_accuracy(network, self.test, batch_size=size, max_images=limit, progress=bar, world=self.world)
        robust = self._under_attack(network, self.test, settings.steps, size, limit, progress=bar)
        return {"clean": clean.as_dict(), f"pgd_{settings.steps}": robust.as_dict()}

    def _under_attack(
        self,
        network: nn.Module,
        images: ImageDataset,
        steps: int,
        size: int,
        limit: int | None,
        *,
        progress: bool = False,
    ) -> Any:
        """Return the accuracy under PGD at training's radius; the random start is the same in every epoch."""
        return robust_accuracy(
            network,
            images,
            replace(self.config.budget, steps=steps),
            batch_size=size,
            seed=derive_seed(self.config.seed, "validation"),
            max_images=limit,
            progress=progress,
            world=self.world,
        )

    def _save(self, run: SharedRun | None, keep_as: str | None = None) -> None:
        if run is None:
            return
        require_finite(self.learner.model, self.learner.steps_done)
        state = {
            **self.learner.state_dict(),
            "selection": self._selection.state_dict(),
            "sums": self._sums,
            "seconds": self._seconds,
            "rollbacks": self.rollbacks,
            "num_classes": self._classes,
            "config": to_yaml(self.config),
        }
        run.save(state, keep_as=keep_as)

    def _summary(self, finished: bool) -> dict[str, Any]:
        config = self.config
        return {
            "finished": finished,
            "method": config.method,
            "robust_perception": config.robust_perception,
            "seed": config.seed,
            "epochs": self.learner.epochs,
            "steps": self.learner.steps_done,
            "training_seconds": round(self._seconds, 3),
            "device": str(self.device),
            "torch": torch.__version__,
            "selected": self._selected_name(),
            "best_validation": {name: asdict(record) for name, record in self._selection.records.items()},
        }

    def _selected_name(self) -> str:
        return "ema" if self.config.ema.enabled else "model"

    def _progress_bar(self) -> Any:
        return tqdm(
            total=self.learner.total_steps,
            initial=self.learner.steps_done,
            unit="step",
            desc=self.config.method,
            disable=None if self.config.run.progress and self.world.main else True,
        )
