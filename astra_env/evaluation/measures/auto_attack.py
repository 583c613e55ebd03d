"""AutoAttack (Croce & Hein 2020) through the package pyautoattack, made safe to call from a larger program.

What the package does and this module undoes or replaces: it computes on the CPU unless told otherwise, its own resume
file cannot be read back, it reseeds torch's global generators, clears ``sys.settrace``, keeps a module-level count of
traced calls, and only logs its warnings.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from astra_env.attacks import frozen
from astra_env.errors import CheckpointError, InputError
from astra_env.evaluation.measures.accuracy import Accuracy
from astra_env.evaluation.measures.batches import device_of
from astra_env.evaluation.measures.parts import fingerprint
from astra_env.evaluation.probes.classifier import require_finite
from astra_env.storage.checkpoint import load_checkpoint, save_checkpoint

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
QUICK = ("apgd-ce", "apgd-t")
VERSIONS = {"standard": STANDARD, "quick": QUICK}
NORMS = {"linf": "Linf", "l2": "L2"}
SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class AutoAttackResult:
    """What AutoAttack found.

    Attributes:
        label: "AutoAttack (standard)", or a name that says that only a subset of it ran.
        clean: accuracy before any attack.
        robust: accuracy after all attacks.
        after: accuracy after each attack, in the order they ran.
        warnings: what AutoAttack warned of, once each; a warning means the number may be too high.
        adversarial: float32 (N, C, H, W) on the CPU: a fooling image where one was found, else the image itself.
    """

    label: str
    clean: Accuracy
    robust: Accuracy
    after: dict[str, Accuracy]
    warnings: list[str]
    adversarial: Tensor


def autoattack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    norm: str = "linf",
    version: str = "standard",
    batch_size: int = 250,
    seed: int = 0,
    state_path: str | Path | None = None,
    progress: bool = False,
) -> AutoAttackResult:
    """Run AutoAttack on the model's own device, in eval mode; the model and all global state are left as found.

    Adversarial images are bit-identical to those of ``pyautoattack`` called directly with the same seed.

    Args:
        model: maps images (N, C, H, W) in [0, 1] to logits (N, K), K >= 4.
        images: float32 (N, C, H, W) in [0, 1].
        labels: (N,) int64.
        epsilon: radius in [0, 1] pixel units.
        norm: "linf" or "l2".
        version: "standard" (the four attacks) or "quick" (the two APGD attacks only, labelled as such).
        batch_size: images attacked at once; part of the result's definition, as the random starts depend on it.
        seed: of every attack.
        state_path: file the state is kept in, so that a run broken off continues after its last saved batch.
        progress: show a progress bar.

    Raises:
        InputError: when pyautoattack is missing, images leave [0, 1], the logits are not finite or have fewer than four
            classes, or a choice is unknown.
        CheckpointError: when ``state_path`` belongs to another attack.
    """
    if version not in VERSIONS:
        raise InputError(f"version: expected one of {', '.join(VERSIONS)}, got {version!r}")
    if norm not in NORMS:
        raise InputError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}")
    _check_images(images, labels)
    attacks = VERSIONS[version]
    device = device_of(model)
    with frozen(model), _isolated(device) as warnings:
        adversary = _adversary(model, epsilon, norm, seed, device, images[:1])
        owner = fingerprint(model, images, labels, epsilon, norm, version, batch_size, seed)
        state = _State.restore(state_path, owner, images)
        if state.robust is None:
            state.robust = _right(model, images, labels, batch_size, device)
            state.counts["clean"] = int(state.robust.sum())
        try:
            for attack in attacks:
                _run_attack(adversary, attack, images, labels, state, batch_size, progress)
        finally:
            state.warnings = list(dict.fromkeys([*state.warnings, *warnings]))
            state.save()
        _check_square(state, len(images))
    found = list(dict.fromkeys([*state.warnings, *warnings]))
    after = {name: Accuracy(count, len(images)) for name, count in state.counts.items()}
    label = "AutoAttack (standard)" if version == "standard" else f"AutoAttack subset ({', '.join(attacks)} only)"
    clean = after.pop("clean")
    return AutoAttackResult(
        label, clean, Accuracy(int(state.robust.sum()), len(images)), after, found, state.adversarial
    )


class _State:
    """How far the attacks have come; kept in a file when there is a path for it."""

    def __init__(self, path: Path | None, fingerprint: str, images: Tensor) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self._saved = time.monotonic()
        self.robust: Tensor | None = None
        self.adversarial = images.detach().to("cpu", torch.float32, copy=True)
        self.counts: dict[str, int] = {}
        self.rows: Tensor | None = None
        self.done = 0
        self.warnings: list[str] = []

    @classmethod
    def restore(cls, path: str | Path | None, fingerprint: str, images: Tensor) -> "_State":
        state = cls(None if path is None else Path(path), fingerprint, images)
        if state._path is None or not state._path.exists():
            return state
        stored = load_checkpoint(state._path)
        if stored.get("fingerprint") != fingerprint:
            raise CheckpointError(
                f"{path}: belongs to an AutoAttack run with another model, other images or settings; delete it or "
                "choose another --out"
            )
        for name in ("robust", "adversarial", "counts", "rows", "done", "warnings"):
            setattr(state, name, stored[name])
        return state

    def save(self, *, only_if_due: bool = False) -> None:
        due = time.monotonic() - self._saved >= SAVE_SECONDS
        if self._path is None or (only_if_due and not due):
            return
        names = ("robust", "adversarial", "counts", "rows", "done", "warnings")
        save_checkpoint(self._path, {"fingerprint": self._fingerprint, **{n: getattr(self, n) for n in names}})
        self._saved = time.monotonic()


def _run_attack(
    adversary: Any, attack: str, images: Tensor, labels: Tensor, state: _State, batch_size: int, progress: bool
) -> None:
    """Run one attack on the images that are still classified right, from the batch where it was broken off."""
    if attack in state.counts or state.robust is None:
        return
    if state.rows is None:
        state.rows, state.done = state.robust.nonzero().flatten(), 0
    adversary.attacks_to_run = [attack]
    batches = state.rows.split(batch_size)
    for index in tqdm(
        range(state.done, len(batches)), attack, len(batches), unit="batch", initial=state.done, disable=not progress
    ):
        rows = batches[index]
        if len(rows):
            attacked, predicted = adversary.run_standard_evaluation(images[rows], labels[rows], batch_size=batch_size)
            fooled = rows[(predicted != labels[rows]).cpu()]
            state.adversarial[fooled] = attacked[(predicted != labels[rows])].detach().cpu()
            state.robust[fooled] = False
        state.done = index + 1
        state.save(only_if_due=True)
    state.counts[attack] = int(state.robust.sum())
    state.rows = None
    state.save()


def _adversary(model: nn.Module, epsilon: float, norm: str, seed: int, device: torch.device, sample: Tensor) -> Any:
    from pyautoattack import AutoAttack

    with torch.no_grad():
        logits = model(sample.to(device))
    require_finite(logits, "model logits")
    classes = logits.shape[1]
    if classes < 4:
        raise InputError(f"autoattack: expected at least 4 classes for its targeted attacks, got {classes}; use pgd")
    adversary = AutoAttack(model, norm=NORMS[norm], eps=epsilon, version="standard", seed=seed, device=device)
    adversary.apgd_targeted.n_target_classes = min(9, classes - 1)
    adversary.fab.n_target_classes = min(9, classes - 1)
    return adversary


@torch.no_grad()
def _right(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int, device: torch.device) -> Tensor:
    parts = []
    for batch, truth in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        logits = model(batch.to(device))
        require_finite(logits, "model logits")
        parts.append((logits.argmax(1) == truth.to(device)).cpu())
    return torch.cat(parts)


def _check_square(state: _State, total: int) -> None:
    """Let the package judge whether Square, which needs no gradient, found what the gradient attacks missed."""
    from pyautoattack import checks

    if "square" in state.counts:
        accuracies = {name: count / total for name, count in state.counts.items()}
        checks.check_square_sr(accuracies, logger=logging.getLogger("auto-attack"))


def _check_images(images: Tensor, labels: Tensor) -> None:
    if images.dim() != 4 or not images.is_floating_point() or len(images) == 0 or labels.shape != images.shape[:1]:
        raise InputError(
            f"images: expected float (N, C, H, W) and labels (N,), got {images.dtype} {tuple(images.shape)} and "
            f"{tuple(labels.shape)}"
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise InputError(f"images: expected values in [0, 1], got {low:.3g} to {high:.3g}; divide uint8 images by 255")


class _Warnings(logging.Handler):
    """Keeps warnings as text."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


@contextmanager
def _isolated(device: torch.device) -> Iterator[list[str]]:
    """Restore global random state, tracing and logging afterwards; gives the list that warnings are put in."""
    try:
        from pyautoattack import checks
    except ImportError as error:
        raise InputError("autoattack: the package pyautoattack is not installed; install astra-env[eval]") from error
    logger, handler, trace = logging.getLogger("auto-attack"), _Warnings(), sys.gettrace()
    propagate, counts = logger.propagate, dict(checks.funcs)
    logger.addHandler(handler)
    logger.propagate = False
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield handler.found
    finally:
        sys.settrace(trace)
        checks.funcs.update(counts)
        logger.removeHandler(handler)
        logger.propagate = propagate
