"""Semi-supervised adversarial fine-tuning on few labels and many pseudo-labels (ACL, Jiang et al. 2020, section 3.3).

1. The encoder's clean branch and a head are trained on the labelled images, without attacks.
2. What comes out gives every training image logits, its soft pseudo-label.
3. The encoder's adv branch and a new head, from the pre-trained weights, are fine-tuned on attacked images: true labels
   and pseudo-labels where there are labels, pseudo-labels where there are none, and KL(natural || adversarial).

DynACL and ASTrA evaluate by the same code (``train_trades.py --trainmode normal``, then
``train_trades_cifar10_semisupervised.py``). What is not as there: the labelled share is drawn by class from the seed,
where ACL ships lists of indices; only the epoch that PGD-20 chooses is reported, where ACL also reports the one that
clean images choose.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.attacks import frozen
from astra_env.data import ImageDataset, split_labelled, split_validation
from astra_env.evaluation.campaign.config import SemiSupervisedConfig
from astra_env.evaluation.measures.accuracy import Accuracy
from astra_env.evaluation.measures.batches import (
    device_of,
    ordered_batches,
    paired_batches,
    require_labels,
    shuffled_batches,
)
from astra_env.evaluation.measures.robustness import clean_accuracy, robust_accuracy
from astra_env.evaluation.probes.classifier import EncoderClassifier
from astra_env.evaluation.probes.linear import EVALUATION_ATTACK, TRAINING_ATTACK, UNCLIPPED, label_attack
from astra_env.evaluation.probes.training_state import Fit

STANDARD_DECAY_POINTS = (0.39, 0.59)
"""Of the standard training: after 39 and 59 of 100 epochs; the published loop steps its schedule before an epoch."""
DECAY_POINTS = (4 / 15, 9 / 15)
"""Of the fine-tuning: after 4 and 9 of 15 epochs."""
BATCH_SIZE, BATCH_SIZE_OF_FEW, FEW = 250, 200, 0.05
"""Images per step: 25 + 225 with 10 % of labels, 2 + 198 with 1 %; ``FEW`` lies between."""


@dataclass(frozen=True)
class SemiSupervisedResult:
    """What the protocol gives.

    Attributes:
        classifier: images in [0, 1] -> logits, on the adv branch.
        description: plain values: numbers of images of each kind, the share of right pseudo-labels among the images
            without labels, the epochs chosen and their accuracies on held-out images.
    """

    classifier: EncoderClassifier
    description: dict[str, Any]


def semi_supervised(
    target: nn.Module,
    train: ImageDataset,
    options: SemiSupervisedConfig,
    *,
    label_fraction: float,
    validation_fraction: float = 0.1,
    augment: bool = True,
    seed: int = 0,
    device: torch.device | str | None = None,
    state_path: str | Path | None = None,
    progress: bool = False,
) -> SemiSupervisedResult:
    """Train a classifier from an encoder and labels for a share of the images; the encoder is not changed.

    Args:
        target: has ``embed(images[, branch])`` and ``embed_dim``.
        train: training images; their labels are used for the labelled share and the held-out images, and for the rest
            only to say how many pseudo-labels are right.
        options: the settings.
        label_fraction: share of the images (held-out ones aside), in (0, 1), whose labels are used.
        validation_fraction: share that is held out, with its labels, when ``options.choose`` is "held_out".
        augment: crop (padding 4) and flip.
        seed: of splits, order, augmentation and attack.
        device: where to compute; default where the encoder is.
        state_path: stem of the two checkpoints written after every epoch; training continues from them.
        progress: show progress bars.

    Raises:
        DataError: when a class would have no labelled image.
        CheckpointError: when ``state_path`` holds another training.
        Diverged: when a loss is not finite.
    """
    require_labels(train)
    place = device_of(target) if device is None else torch.device(device)
    rest, held_out = train, None
    if options.choose == "held_out":
        rest, held_out = split_validation(train, round(validation_fraction * len(train)), seed)
    labelled, others = split_labelled(rest, label_fraction, seed)
    plan = _Plan(target, options, label_fraction, augment, seed, place, held_out, progress)
    teacher, first = plan.train_standard(labelled, _stage_file(state_path, "standard"))
    known, unknown = pseudo_labels(teacher, labelled), pseudo_labels(teacher, others)
    classifier, second = plan.fine_tune(labelled, others, known, unknown, _stage_file(state_path, "fine-tuning"))
    right = int((unknown.argmax(1).cpu() == others.labels.cpu()).sum())
    description = {
        "labelled": len(labelled),
        "pseudo_labelled": len(others),
        "held_out": 0 if held_out is None else len(held_out),
        "pseudo_labels": Accuracy(right, len(others)).as_dict(),
        "standard": first,
        "fine_tuning": second,
    }
    return SemiSupervisedResult(classifier.eval(), description)


@torch.no_grad()
def pseudo_labels(teacher: nn.Module, images: ImageDataset, batch_size: int = 256) -> Tensor:
    """Return the teacher's eval-mode logits (N, K) of the images as they are, on its device."""
    with frozen(teacher):
        batches = ordered_batches(images, batch_size, device_of(teacher))
        return torch.cat([teacher(batch) for batch, _ in batches])


def semi_supervised_loss(
    natural: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    pseudo: Tensor,
    *,
    beta: float = 6.0,
    alpha: float = 0.5,
    temperature: float = 1.0,
    distillation: float = 1.0,
) -> Tensor:
    """Return the loss of ACL's semi-supervised fine-tuning, a scalar; rows with labels come first.

    With logits z = ``natural`` and z' = ``adversarial`` (B, K), ``labels`` (n,), n <= B, ``pseudo`` logits (B, K),
    q = softmax(pseudo / T) and the soft cross-entropy S_i = -sum_k q_ik log softmax(z'_i / T)_k::

        B * loss = (1 - alpha) sum_{i<n} CE(z'_i, y_i) + alpha r T^2 sum_{i<n} S_i + r T^2 sum_{i>=n} S_i
                   + beta sum_i KL(softmax(z_i) || softmax(z'_i)),        r = distillation
    """
    known = len(labels)
    soft = -((pseudo / temperature).softmax(1) * (adversarial / temperature).log_softmax(1)).sum(1)
    true = F.cross_entropy(adversarial[:known], labels, reduction="sum")
    distilled = distillation * temperature**2 * (alpha * soft[:known].sum() + soft[known:].sum())
    divergence = F.kl_div(adversarial.log_softmax(1), natural.softmax(1), reduction="sum")
    return ((1 - alpha) * true + distilled + beta * divergence) / len(natural)


def steps_per_epoch(labelled: int, others: int, batch_size: int | None, label_fraction: float) -> int:
    """Return how many steps show every image once with about ``batch_size`` images each, both kinds in every step."""
    size = batch_size or (BATCH_SIZE_OF_FEW if label_fraction < FEW else BATCH_SIZE)
    return min(max(1, round((labelled + others) / size)), labelled, others)


@dataclass(frozen=True)
class _Plan:
    """What both trainings share."""

    target: nn.Module
    options: SemiSupervisedConfig
    label_fraction: float
    augment: bool
    seed: int
    place: torch.device
    held_out: ImageDataset | None
    progress: bool

    def train_standard(self, labelled: ImageDataset, path: Path | None) -> tuple[EncoderClassifier, dict[str, Any]]:
        """Train clean branch and head on the labelled images by the cross-entropy; held-out clean images choose."""
        options, size = self.options, self.options.standard_batch_size
        classifier, generator = self._classifier(labelled, "clean")

        def epoch() -> Iterable[Tensor]:
            for images, labels in shuffled_batches(labelled, size, self.place, generator, augment=self.augment):
                classifier.train()
                yield F.cross_entropy(classifier(images), labels)

        fit = Fit(
            options.standard_epochs,
            options.standard_learning_rate,
            options.standard_weight_decay,
            size,
            decay_points=STANDARD_DECAY_POINTS,
            state_path=path,
        )
        return classifier, self._run(
            "standard training", fit, len(labelled), classifier, generator, epoch, clean_accuracy
        )

    def fine_tune(
        self, labelled: ImageDataset, others: ImageDataset, known: Tensor, unknown: Tensor, path: Path | None
    ) -> tuple[EncoderClassifier, dict[str, Any]]:
        """Train adv branch and head on attacked images of both kinds; held-out images under PGD-20 choose."""
        options, attack = self.options, replace(TRAINING_ATTACK, steps=self.options.attack_steps)
        classifier, generator = self._classifier(labelled, "adv")
        true, guessed = labelled.labels.to(self.place), unknown.argmax(1)
        weights = {name: getattr(options, name) for name in ("beta", "alpha", "temperature", "distillation")}
        steps = steps_per_epoch(len(labelled), len(others), options.batch_size, self.label_fraction)

        def epoch() -> Iterable[Tensor]:
            batches = paired_batches(labelled, others, steps, self.place, generator, augment=self.augment)
            for images, mine, theirs in batches:
                rows, other_rows = mine.to(self.place), theirs.to(self.place)
                hard = torch.cat([true[rows], guessed[other_rows]])
                adversarial = label_attack(classifier, images, hard, attack, generator)
                classifier.train()
                logits, attacked = classifier(images), classifier(adversarial)
                pseudo = torch.cat([known[rows], unknown[other_rows]])
                yield semi_supervised_loss(logits, attacked, true[rows], pseudo, **weights)

        fit = Fit(
            options.epochs, options.learning_rate, options.weight_decay, 1, decay_points=DECAY_POINTS, state_path=path
        )
        under_pgd = partial(robust_accuracy, attack=EVALUATION_ATTACK, seed=self.seed)
        title = "semi-supervised fine-tuning"
        return classifier, self._run(title, fit, steps, classifier, generator, epoch, under_pgd)

    def _classifier(self, labelled: ImageDataset, branch: str) -> tuple[EncoderClassifier, torch.Generator]:
        """Return a copy of the encoder with a head at zero, to be trained whole, and a generator for its training."""
        classifier = EncoderClassifier(deepcopy(self.target), len(labelled.classes), branch)
        return classifier.to(self.place).requires_grad_(True), torch.Generator().manual_seed(self.seed)

    def _run(
        self,
        title: str,
        fit: Fit,
        images: int,
        classifier: EncoderClassifier,
        generator: torch.Generator,
        epoch: Callable[[], Iterable[Tensor]],
        accuracy: Callable[..., Accuracy],
    ) -> dict[str, Any]:
        """Train, leave in the classifier the weights of the epoch that held-out images choose and say which it is."""
        held_out = self.held_out
        settings = {
            **asdict(self.options),
            "label_fraction": self.label_fraction,
            "held_out": 0 if held_out is None else len(held_out),
            "augment": self.augment,
            "seed": self.seed,
            "attack_start": UNCLIPPED,
            "stage": title,
        }

        def score() -> float:
            return accuracy(classifier, held_out, progress=self.progress).value

        asked, fit = None if held_out is None else score, replace(fit, progress=self.progress)
        best = fit.run(title, classifier, generator, epoch, images, settings, asked, earliest=1)
        if best is None:
            return {"epoch": fit.epochs}
        classifier.load_state_dict(best.weights)
        return {"epoch": best.epoch, "held_out_accuracy": best.score}


def _stage_file(stem: str | Path | None, stage: str) -> Path | None:
    return None if stem is None else Path(stem).with_suffix(f".{stage}.training.pt")
