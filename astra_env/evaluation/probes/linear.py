"""Linear probing of a frozen encoder: SLF (clean images) and ALF (adversarial images)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.attacks import frozen, supervised_attack
from astra_env.data import ImageDataset
from astra_env.evaluation.measures.accuracy import Accuracy
from astra_env.evaluation.measures.batches import device_of, ordered_batches, shuffled_batches, used_images
from astra_env.evaluation.measures.robustness import clean_accuracy, robust_accuracy
from astra_env.evaluation.probes.classifier import EncoderClassifier, require_finite
from astra_env.evaluation.probes.training_state import Fit, FitOptions
from astra_env.strategy import Attack

UNCLIPPED = "uniform in the ball, not clipped to the image box"
"""The start of the attack in ALF and in semi-supervised training."""


TRAINING_ATTACK = Attack(8 / 255, 2 / 255, 10)
"""The papers' attack of adversarial training."""
EVALUATION_ATTACK = Attack(8 / 255, 2 / 255, 20)
"""The papers' attack of evaluation, PGD-20."""


@dataclass(frozen=True)
class ProbeResult:
    """What a linear probe says about an encoder.

    Attributes:
        classifier: the probed encoder with its trained head.
        clean: accuracy on the test images as they are.
        robust: accuracy under PGD, by radius in [0, 1] pixel units.
    """

    classifier: nn.Module
    clean: Accuracy
    robust: dict[float, Accuracy]


def linear_probe(
    target: nn.Module,
    train: ImageDataset,
    test: ImageDataset | None = None,
    *,
    branch: str = "adv",
    attack: Attack | None = None,
    **options: Unpack[FitOptions],
) -> EncoderClassifier:
    """Train a zero-initialised linear head on one branch of a frozen encoder (SLF; under an ``attack``, ALF).

    Learning rate x.1 at 40 % and 80 % of the epochs, loss in eval mode (DynACL 2023, ASTrA 2025: ``test_LF.py``). The
    encoder's weights and statistics stay as they are; it is moved to ``device`` and comes back in eval mode, as part of
    the classifier.

    Args:
        target: has ``embed(images[, branch])`` and ``embed_dim``.
        train: labelled training images.
        test: checked to fit ``train`` before any work is done; nothing is chosen on it.
        branch: BatchNorm branch, "adv" or "clean"; of no consequence for an encoder without branches.
        attack: train the head on PGD examples against the classifier as it is (ALF; the papers' is
            :data:`TRAINING_ATTACK`).
        options: the attributes of :class:`Fit`. ``augment`` extracts features anew every epoch; without it, and without
            an attack, they are extracted once, and training is over too soon to need ``state_path``.

    Returns:
        The classifier, images in [0, 1] -> logits.

    Raises:
        InputError: for an encoder that gives no finite features, data that does not fit, or numbers out of range.
        CheckpointError: when ``state_path`` holds another training.
    """
    fit = Fit(**options)
    fit.check(train, test)
    place = device_of(target) if fit.device is None else torch.device(fit.device)
    classifier = EncoderClassifier(target, len(train.classes), branch).to(place)
    generator = torch.Generator().manual_seed(fit.seed)
    cached = None
    if not fit.augment and attack is None:
        cached = extract_features(classifier, train, batch_size=fit.batch_size, progress=fit.progress)
    settings = {
        "epochs": fit.epochs,
        "learning_rate": fit.learning_rate,
        "batch_size": fit.batch_size,
        "seed": fit.seed,
        "branch": branch,
        "adversarial": attack is not None,
        "augment": fit.augment,
        **({"drop_last": True} if fit.drop_last else {}),
        **({"attack_start": UNCLIPPED} if attack is not None else {}),
    }
    used = used_images(len(train), fit.batch_size, fit.drop_last)

    def epoch() -> Iterator[Tensor]:
        if cached is not None:
            batches = _cached_batches(*cached, fit.batch_size, generator, used)
        else:
            batches = _streamed_batches(classifier, train, fit, generator, attack)
        for features, labels in batches:
            yield F.cross_entropy(classifier.head(features), labels)

    kept = fit if cached is None else replace(fit, state_path=None)
    kept.run("linear probe", classifier.head, generator, epoch, used, settings)
    return classifier.eval()


@torch.no_grad()
def extract_features(
    classifier: EncoderClassifier, dataset: ImageDataset, *, batch_size: int = 512, progress: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the classifier's eval-mode embeddings (N, D) of every image and the labels (N,), on its device."""
    parts = []
    with frozen(classifier):
        for images, _ in ordered_batches(
            dataset, batch_size, device_of(classifier), title="extracting features", progress=progress
        ):
            parts.append(classifier.embed(images))
    features = torch.cat(parts)
    require_finite(features, "encoder features")
    return features, dataset.labels.to(features.device)


def probe(
    target: nn.Module,
    train: ImageDataset,
    test: ImageDataset,
    attacks: Sequence[Attack] = (EVALUATION_ATTACK,),
    *,
    branch: str = "adv",
    max_test_images: int | None = None,
    **options: Unpack[FitOptions],
) -> ProbeResult:
    """Probe an encoder (SLF) and attack the result with PGD; arguments as in the parts."""
    classifier = linear_probe(target, train, test, branch=branch, **options)
    fit = Fit(**options)
    return measure_classifier(
        classifier, test, attacks, max_test_images=max_test_images, seed=fit.seed, progress=fit.progress
    )


def measure_classifier(
    classifier: nn.Module,
    test: ImageDataset,
    attacks: Sequence[Attack] = (EVALUATION_ATTACK,),
    *,
    max_test_images: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> ProbeResult:
    """Return what a probe says of an encoder about a network that classifies already.

    Args:
        classifier: images in [0, 1] -> logits.
        test: labelled images.
        attacks: of different radii.
        max_test_images: attack so many of the images; default all.
        seed: of the attacks' random starts.
        progress: show progress bars.
    """
    robust = {
        attack.epsilon: robust_accuracy(
            classifier, test, attack, seed=seed, max_images=max_test_images, progress=progress
        )
        for attack in attacks
    }
    return ProbeResult(classifier, clean_accuracy(classifier, test, progress=progress), robust)


def _cached_batches(
    features: Tensor, labels: Tensor, batch_size: int, generator: torch.Generator, used: int
) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(features), generator=generator).to(features.device)
    for rows in order[:used].split(batch_size):
        yield features[rows], labels[rows]


def _streamed_batches(
    classifier: EncoderClassifier, train: ImageDataset, fit: Fit, generator: torch.Generator, attack: Attack | None
) -> Iterator[tuple[Tensor, Tensor]]:
    place = device_of(classifier)
    shown = {"augment": fit.augment, "drop_last": fit.drop_last}
    for images, labels in shuffled_batches(train, fit.batch_size, place, generator, **shown):
        if attack is not None:
            images = label_attack(classifier, images, labels, attack, generator)
        with frozen(classifier), torch.no_grad():
            features = classifier.embed(images)
        require_finite(features, "encoder features")
        yield features, labels


def label_attack(
    classifier: nn.Module, images: Tensor, labels: Tensor, attack: Attack, generator: torch.Generator
) -> Tensor:
    """Return images (N, 3, H, W) that raise the cross-entropy of ``labels`` (N,): the attack of ALF's training.

    Eval mode; the start is uniform in the ball and not clipped to the image box before the first forward
    (``pgd_attack`` of ACL, DynACL and ASTrA).
    """
    strategy, norm = attack.strategy(len(images), images.device), attack.norm
    return supervised_attack(
        classifier, images, labels, strategy, norm=norm, generator=generator, clip_start=False
    ).adversarial
