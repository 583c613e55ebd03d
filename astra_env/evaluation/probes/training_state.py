"""The training of a head or a network in whole epochs: kept in a file, continued from it, shown on the screen."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from tqdm import tqdm

from astra_env.data import ImageDataset
from astra_env.errors import CheckpointError, Diverged, InputError
from astra_env.evaluation.measures.batches import require_alike, require_labels
from astra_env.storage.checkpoint import load_checkpoint, save_checkpoint

MOMENTUM = 0.9


@dataclass(frozen=True)
class Fit:
    """How a head or a whole network is trained: SGD with momentum .9 on the cross-entropy of labels.

    Attributes:
        epochs: passes over the images.
        learning_rate: at the start; of the head .01 for CIFAR-10, .05 for CIFAR-100, .1 for STL-10 in the papers.
        weight_decay: of what is trained.
        batch_size: images per step.
        augment: crop (padding 4) and flip.
        decay_points: fractions of the epochs after which the learning rate falls tenfold.
        drop_last: leave out the last batch of an epoch when it is not whole (LP-AFT).
        seed: of order, augmentation and attack.
        device: where to compute; default where the encoder is.
        state_path: checkpoint written after every epoch; training continues from it when it is there.
        progress: show a progress bar.
    """

    epochs: int = 25
    learning_rate: float = 0.01
    weight_decay: float = 2e-4
    batch_size: int = 512
    augment: bool = True
    decay_points: Sequence[float] = (0.4, 0.8)
    drop_last: bool = False
    seed: int = 0
    device: torch.device | str | None = None
    state_path: str | Path | None = None
    progress: bool = False

    def check(self, train: ImageDataset, test: ImageDataset | None) -> None:
        """Raise DataError for images without labels or a test set that does not fit, InputError without an epoch."""
        require_labels(train)
        if test is not None:
            require_alike(train, test)
        if self.epochs < 1:
            raise InputError(f"epochs: expected at least 1, got {self.epochs}")

    def run(
        self,
        title: str,
        module: nn.Module,
        generator: torch.Generator,
        epoch: Callable[[], Iterable[Tensor]],
        images: int,
        settings: Mapping[str, Any],
        score: Callable[[], float] | None = None,
        earliest: int = 0,
    ) -> "BestWeights | None":
        """Train ``module`` on the losses of ``epoch``, from where ``state_path`` was left off.

        Args:
            title: of the progress bar.
            module: what is trained.
            generator: the training's only source of randomness.
            epoch: yields the loss of every step of one epoch.
            images: how many images an epoch shows.
            settings: what the training depends on.
            score: asked after every epoch; the best epoch's weights are then returned.
            earliest: epoch before which the learning rate does not fall.

        Raises:
            Diverged: for a loss that is not finite.
            CheckpointError: when ``state_path`` holds another training.
        """
        optimizer = torch.optim.SGD(module.parameters(), self.learning_rate, MOMENTUM, weight_decay=self.weight_decay)
        milestones = [max(earliest, round(point * self.epochs)) for point in self.decay_points]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
        best = None if score is None else BestWeights()
        state = TrainingState(self.state_path, settings, module, optimizer, schedule, generator, best)
        first, steps = state.restore(), math.ceil(images / self.batch_size)
        with tqdm(
            total=self.epochs * steps, initial=first * steps, desc=title, unit="step", disable=not self.progress
        ) as bar:
            for done in range(first + 1, self.epochs + 1):
                for loss in epoch():
                    if not bool(torch.isfinite(loss)):
                        raise Diverged(f"{title}: the loss is {loss.item()} in epoch {done}; lower the learning rate")
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    bar.update()
                schedule.step()
                if best is not None and score is not None:
                    best.offer(module, done, score())
                state.save(done)
        return best


class FitOptions(TypedDict, total=False):
    """The attributes of :class:`Fit`, as keywords."""

    epochs: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    augment: bool
    decay_points: Sequence[float]
    drop_last: bool
    seed: int
    device: torch.device | str | None
    state_path: str | Path | None
    progress: bool


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
