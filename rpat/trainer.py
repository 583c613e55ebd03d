"""A whole supervised run: the loop around the learner, with validation, selection and the final measurement."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from astra_env.config.paths import user_path
from astra_env.config.reading import load_config, to_yaml
from astra_env.data import ImageDataset
from astra_env.distributed import ALONE, SharedRun, World, shared_state
from astra_env.storage.room import require_room, state_bytes
from astra_env.storage.run_directory import RunDirectory
from astra_env.training.loop import Loop
from rpat.callbacks import Accuracies, EpochMeans
from rpat.config import PRESET_PACKAGE, RPATConfig
from rpat.learner import SupervisedLearner
from rpat.resuming import check_same_run
from rpat.selection import Selection
from rpat.splits import load_splits, load_test


class Trainer(Loop):
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

    learner: SupervisedLearner
    run: SharedRun | None

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
        self.config = config = config.resolved()
        if config.run.threads is not None:
            torch.set_num_threads(config.run.threads)
        self.device = world.resolve(config.device)
        train, self.validation = load_splits(config, self.device)
        if config.test.enabled:
            _ = self.test  # what the end needs is read before the first step
        learner = SupervisedLearner(config, train, self.device, world)
        self._classes = config.network.num_classes or len(train.classes)
        self._selection = Selection(None, self._classes, writes=world.main)
        self._accuracies = Accuracies(config, self.validation, self._selection)
        super().__init__(
            learner,
            learner.model,
            replace(config.run, checkpoint_every=config.run.checkpoint_every or learner.sampler.steps_per_epoch),
            config.method,
            callbacks=[EpochMeans(), self._accuracies],
            progress=None if config.run.progress else False,
        )
        self.exit_status = 0

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
            RunDirectoryError: when the directory cannot be used or the disk is too full for its checkpoints.
            Diverged: when loss or gradient stop being finite and ``run.on_divergence`` is "raise", nothing is written,
                or going back did not help.
        """
        place = nullcontext() if run_dir is None else self._place(run_dir, resume, renew)
        with place as self.run:
            self._selection.folder = None if self.run is None else self.run.checkpoints
            if resume:
                self.restore()
            self.exit_status = self.train()
            summary = self._summary(finished=self.exit_status == 0)
            if self.run is not None and self.world.main and not self.exit_status:
                self._write(self.run, summary)
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

    def step(self) -> dict[str, Tensor]:
        """Train on the next batch and return its loss terms."""
        return self.learner.step()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {**super().state_dict(), "num_classes": self._classes, "config": to_yaml(self.config)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a checkpoint whole; raises ConfigError when its run computes something else."""
        check_same_run(self.config, str(state.get("config", "")))
        # Version 0.1.0 kept the seconds by themselves.
        super().load_state_dict({"rollbacks": 0, "timing": {"seconds": state.get("seconds", 0.0)}, **state})

    def _place(self, run_dir: str | Path, resume: bool, renew: bool) -> SharedRun:
        """Return the run directory for ``with``; on rank 0 the disk must have room for the checkpoints."""
        folder, text, every = user_path("run_dir", run_dir), to_yaml(self.config), self.options.keep_every
        if self.world.main:
            kept = self.learner.total_steps // every if every else 0
            require_room(folder, state_bytes(self.learner.state_dict()), kept, resume=resume)
        return SharedRun(self.world, folder, lambda: RunDirectory(folder, text, resume=resume, renew=renew))

    def _write(self, run: SharedRun, summary: Mapping[str, Any]) -> None:
        from astra_env.plotting.style import save
        from astra_env.plotting.training import supervised_figure

        run.write_summary(summary)
        with run.directory.refusals():
            save(supervised_figure(run.metrics()), run.path / "losses.png")

    def _summary(self, finished: bool) -> dict[str, Any]:
        config = self.config
        return {
            "finished": finished,
            "method": config.method,
            "robust_perception": config.robust_perception,
            "seed": config.seed,
            "epochs": self.learner.epochs,
            "steps": self.learner.step_count,
            "training_seconds": round(self.seconds, 3),
            "device": str(self.device),
            "torch": torch.__version__,
            "selected": self._selected_name(),
            "best_validation": {name: asdict(record) for name, record in self._selection.records.items()},
            **({"test": self._accuracies.tested} if finished else {}),
        }

    def _selected_name(self) -> str:
        return "ema" if self.config.ema.enabled else "model"
