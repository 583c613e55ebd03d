"""Long measurements that are made of many accuracies: what was measured before an interruption is not repeated."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from astra_env.evaluation.measures.accuracy import Accuracy
from astra_env.storage.checkpoint import write_atomically

Remember = Callable[[str, Callable[[], Accuracy]], Accuracy]
"""Gives the accuracy called by a name: the one that is known, or what the function computes."""


def at_once(name: str, compute: Callable[[], Accuracy]) -> Accuracy:
    """Compute without remembering anything."""
    return compute()


class Parts:
    """Accuracies by name in a file that is written after each of them.

    Args:
        path: the file; its folder is created when absent.
        owner: what the accuracies belong to, see :func:`fingerprint`; a file of another owner, or one that cannot be
            read, is begun anew.
    """

    def __init__(self, path: str | Path, owner: str) -> None:
        self._path = Path(path)
        self._owner = owner
        self._known: dict[str, list[int]] = {}
        try:
            stored = json.loads(self._path.read_text())
            if stored["owner"] == owner:
                self._known = {str(name): [int(count) for count in counts] for name, counts in stored["parts"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            pass  # nothing that could be used; it is only work saved

    def __call__(self, name: str, compute: Callable[[], Accuracy]) -> Accuracy:
        """Return the accuracy ``name``, computing and keeping it when it is not known."""
        if name not in self._known:
            found = compute()
            self._known[name] = [found.correct, found.total]
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps({"owner": self._owner, "parts": self._known}).encode())
        return Accuracy(*self._known[name])

    def finish(self) -> None:
        """Remove the file: the whole is in the results now."""
        self._path.unlink(missing_ok=True)


def fingerprint(model: nn.Module, images: Tensor, labels: Tensor, *settings: Any) -> str:
    """Return a digest of everything a result depends on: weights, images, labels and settings."""
    digest = hashlib.sha256(repr(settings).encode())
    for name, tensor in [*model.state_dict().items(), ("images", images), ("labels", labels)]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
