"""Keeping the best weights by robust validation accuracy, for every network of a run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from astra_env.errors import CheckpointError
from astra_env.storage.checkpoint import load_checkpoint, save_checkpoint

FILES = {"model": "best.pt", "ema": "ema_best.pt"}
"""Where the best weights of the trained network and of its average are kept."""


@dataclass(frozen=True)
class Record:
    """A validated network: after which epoch (from 0), and its accuracies on the validation slice, 0 to 1."""

    epoch: int
    robust_accuracy: float
    clean_accuracy: float

    def beats(self, other: "Record | None") -> bool:
        """Whether this one is more robust, or as robust and more accurate on clean images."""
        if other is None:
            return True
        return (self.robust_accuracy, self.clean_accuracy) > (other.robust_accuracy, other.clean_accuracy)


class Selection:
    """The best record of every network and the weights it belongs to.

    Args:
        folder: where weights are written; None keeps them in memory.
        num_classes: number of logits, stored beside the weights so that the network can be rebuilt.
        writes: whether this process writes the weights; of several ranks only one does.
    """

    def __init__(self, folder: Path | None, num_classes: int, *, writes: bool = True) -> None:
        self.folder = folder
        self.num_classes = num_classes
        self.writes = writes
        self.records: dict[str, Record] = {}
        self._weights: dict[str, dict[str, Tensor]] = {}

    def offer(self, name: str, record: Record, weights: Mapping[str, Tensor]) -> bool:
        """Keep the weights of network ``name`` when ``record`` beats the best so far; returns whether it does."""
        if not record.beats(self.records.get(name)):
            return False
        self.records[name] = record
        if self.folder is None:
            self._weights[name] = {key: tensor.detach().clone() for key, tensor in weights.items()}
        elif self.writes:
            state = {"model": dict(weights), "num_classes": self.num_classes, **asdict(record)}
            save_checkpoint(self.folder / FILES[name], state)
        return True

    def weights(self, name: str) -> dict[str, Tensor]:
        """Return the best weights of network ``name``; raises CheckpointError when there are none."""
        if name not in self.records:
            raise CheckpointError(f"{name}: no validated weights were kept; was the run finished?")
        if self.folder is None:
            return self._weights[name]
        return load_checkpoint(self.folder / FILES[name])["model"]

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the records; the weights have files of their own."""
        return {name: asdict(record) for name, record in self.records.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Continue from stored records."""
        self.records = {name: Record(**record) for name, record in state.items()}
