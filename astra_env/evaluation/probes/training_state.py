"""The training of a head or a network in whole epochs: kept in a file, continued from it, shown on the screen."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from astra_env.errors import CheckpointError
from astra_env.storage.checkpoint import load_checkpoint, save_checkpoint


class TrainingState:
    """Everything a training needs to go on after whole epochs, in a file when there is a path for it.

    Args:
        path: the file; None keeps nothing.
        settings: what the training depends on; a file with other settings is refused.
        module: what is trained.
        optimizer: its optimiser.
        schedule: its learning-rate schedule.
        generator: the training's only source of randomness.
        best: the best weights so far, when the training keeps them.
    """

    def __init__(
        self,
        path: str | Path | None,
        settings: Mapping[str, Any],
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        generator: torch.Generator,
        best: "BestWeights | None" = None,
    ) -> None:
        self._path = None if path is None else Path(path)
        self._settings = dict(settings)
        self._module = module
        self._optimizer, self._schedule, self._generator = optimizer, schedule, generator
        self._best = best

    def restore(self) -> int:
        """Load the file when it is there and return the epochs done; raises CheckpointError for another training."""
        if self._path is None or not self._path.exists():
            return 0
        state = load_checkpoint(self._path)
        if state.get("settings") != self._settings:
            raise CheckpointError(
                f"{self._path}: belongs to a training with other settings ({state.get('settings')}); delete it or "
                "choose another --out"
            )
        self._module.load_state_dict(state["classifier"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._generator.set_state(state["generator"])
        if self._best is not None:
            self._best.load_state_dict(state["best"])
        return int(state["epoch"])

    def save(self, epoch: int) -> None:
        """Write the state after ``epoch`` whole epochs."""
        if self._path is None:
            return
        save_checkpoint(
            self._path,
            {
                "settings": self._settings,
                "epoch": epoch,
                "classifier": self._module.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "schedule": {
                    "last_epoch": self._schedule.last_epoch,
                    "_last_lr": self._schedule.get_last_lr(),
                    "_step_count": self._schedule._step_count,
                },
                "generator": self._generator.get_state(),
                **({} if self._best is None else {"best": self._best.state_dict()}),
            },
        )


class BestWeights:
    """The weights of the epoch with the best score; of equal scores the earlier epoch's.

    Attributes:
        epoch: whole epochs done when they were taken; 0 before the first.
        score: their score; higher is better.
        weights: their state dict.
    """

    def __init__(self) -> None:
        self.epoch, self.score = 0, -math.inf
        self.weights: dict[str, torch.Tensor] = {}

    def offer(self, module: nn.Module, epoch: int, score: float) -> None:
        """Take the module's weights when ``score`` is better than what is kept."""
        if score > self.score:
            self.epoch, self.score = epoch, score
            self.weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"epoch": self.epoch, "score": self.score, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what :meth:`state_dict` gave."""
        self.epoch, self.score = int(state["epoch"]), float(state["score"])
        self.weights = dict(state["weights"])


def step_bar(title: str, epochs: int, images: int, batch_size: int, *, first: int = 0, progress: bool = False) -> Any:
    """Return a bar over the steps of ``epochs`` passes, ``first`` of them done, which tells the time left."""
    steps = math.ceil(images / batch_size)
    return tqdm(total=epochs * steps, initial=first * steps, desc=title, unit="step", disable=not progress)
