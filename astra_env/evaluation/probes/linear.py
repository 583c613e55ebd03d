"""Linear probing of a frozen encoder: SLF (clean images) and ALF (adversarial images)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.attacks import frozen, supervised_attack
from astra_env.data import ImageDataset
from astra_env.errors import InputError
from astra_env.evaluation.measures.accuracy import Accuracy
from astra_env.evaluation.measures.batches import (
    device_of,
    ordered_batches,
    require_alike,
    require_labels,
    shuffled_batches,
    used_images,
)
from astra_env.evaluation.measures.robustness import clean_accuracy, robust_accuracy
from astra_env.evaluation.probes.classifier import EncoderClassifier, require_finite
from astra_env.evaluation.probes.training_state import TrainingState, step_bar
from astra_env.strategy import AttackStrategy

MOMENTUM = 0.9
DECAY_POINTS = (0.4, 0.8)
"""Fractions of the epochs after which the learning rate falls tenfold: 10 and 20 of 25."""

UNCLIPPED = "uniform in the ball, not clipped to the image box"
"""The start of the attack in ALF and in semi-supervised training."""


@dataclass(frozen=True)
class TrainingAttack:
    """The PGD attack of adversarial training, in [0, 1] pixel units; the defaults are the papers'."""

    epsilon: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 10


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
    epochs: int = 25,
    learning_rate: float = 0.01,
    weight_decay: float = 2e-4,
    batch_size: int = 512,
    augment: bool = True,
    adversarial: bool = False,
    attack: TrainingAttack | None = None,
    decay_points: Sequence[float] = DECAY_POINTS,
    drop_last: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    state_path: str | Path | None = None,
    progress: bool = False,
) -> EncoderClassifier:
    """Train a zero-initialised linear head on one branch of a frozen encoder (SLF; with ``adversarial``, ALF).

    SGD with momentum .9, learning rate x.1 at 40 % and 80 % of the epochs, loss in eval mode (DynACL 2023, ASTrA 2025:
    ``test_LF.py``). The encoder's weights and statistics stay as they are; it is moved to ``device`` and comes back in
    eval mode, as part of the classifier.

    Args:
        target: has ``embed(images[, branch])`` and ``embed_dim``.
        train: labelled training images.
        test: checked to fit ``train`` before any work is done; nothing is chosen on it.
        branch: BatchNorm branch, "adv" or "clean"; of no consequence for an encoder without branches.
        epochs: passes over ``train``.
        learning_rate: .01 for CIFAR-10, .05 for CIFAR-100, .1 for STL-10 in the papers.
        weight_decay: of the head.
        batch_size: images per step.
        augment: crop (padding 4) and flip, which extracts features anew every epoch. Without it, and without an
            attack, features are extracted once.
        adversarial: train the head on PGD examples against the classifier as it is (ALF).
        attack: of ALF; default 10 steps of 2/255 in 8/255.
        decay_points: fractions of the epochs after which the learning rate falls tenfold.
        drop_last: leave out the last batch of an epoch when it is not whole (LP-AFT).
        seed: of order, augmentation and attack.
        device: where to compute; default where the encoder is.
        state_path: checkpoint of the head written after every epoch over the images; training continues from it when
            it is there. Training on features extracted once is over too soon to need it.
        progress: show a progress bar.

    Returns:
        The classifier, images in [0, 1] -> logits.

    Raises:
        InputError: for an encoder that gives no finite features, data that does not fit, or numbers out of range.
        CheckpointError: when ``state_path`` holds another training.
    """
    require_labels(train)
    if test is not None:
        require_alike(train, test)
    if epochs < 1:
        raise InputError(f"epochs: expected at least 1, got {epochs}")
    place = device_of(target) if device is None else torch.device(device)
    classifier = EncoderClassifier(target, len(train.classes), branch).to(place)
    optimizer = torch.optim.SGD(classifier.head.parameters(), learning_rate, MOMENTUM, weight_decay=weight_decay)
    milestones = [round(point * epochs) for point in decay_points]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    generator = torch.Generator().manual_seed(seed)
    budget = (attack or TrainingAttack()) if adversarial else None
    cached = None
    if not augment and budget is None:
        cached = extract_features(classifier, train, batch_size=batch_size, progress=progress)
    settings = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "seed": seed,
        "branch": branch,
        "adversarial": adversarial,
        "augment": augment,
        **({"drop_last": True} if drop_last else {}),
        **({"attack_start": UNCLIPPED} if adversarial else {}),
    }
    path = state_path if cached is None else None
    state = TrainingState(path, settings, classifier.head, optimizer, schedule, generator)
    first = state.restore()
    used = used_images(len(train), batch_size, drop_last)
    with step_bar("linear probe", epochs, used, batch_size, first=first, progress=progress) as bar:
        for epoch in range(first, epochs):
            if cached is not None:
                batches = _cached_batches(*cached, batch_size, generator, used)
            else:
                batches = _streamed_batches(classifier, train, batch_size, generator, augment, budget, drop_last)
            for features, labels in batches:
                loss = F.cross_entropy(classifier.head(features), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.update()
            schedule.step()
            state.save(epoch + 1)
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
    *,
    branch: str = "adv",
    epsilons: tuple[float, ...] = (8 / 255,),
    steps: int = 20,
    step_size: float | None = None,
    max_test_images: int | None = None,
    epochs: int = 25,
    learning_rate: float = 0.01,
    batch_size: int = 512,
    augment: bool = True,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> ProbeResult:
    """Probe an encoder (SLF) and attack the result with PGD at every radius; arguments as in the parts."""
    classifier = linear_probe(
        target,
        train,
        test,
        branch=branch,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        augment=augment,
        seed=seed,
        device=device,
        progress=progress,
    )
    return measure_classifier(
        classifier,
        test,
        epsilons=epsilons,
        steps=steps,
        step_size=step_size,
        max_test_images=max_test_images,
        seed=seed,
        progress=progress,
    )


def measure_classifier(
    classifier: nn.Module,
    test: ImageDataset,
    *,
    epsilons: tuple[float, ...] = (8 / 255,),
    steps: int = 20,
    step_size: float | None = None,
    norm: str = "linf",
    max_test_images: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> ProbeResult:
    """Return what a probe says of an encoder about a network that classifies already; arguments as in the parts."""
    robust = {
        epsilon: robust_accuracy(
            classifier,
            test,
            epsilon=epsilon,
            steps=steps,
            step_size=step_size,
            norm=norm,
            seed=seed,
            max_images=max_test_images,
            progress=progress,
        )
        for epsilon in epsilons
    }
    return ProbeResult(classifier, clean_accuracy(classifier, test, progress=progress), robust)


def _cached_batches(
    features: Tensor, labels: Tensor, batch_size: int, generator: torch.Generator, used: int
) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(features), generator=generator).to(features.device)
    for rows in order[:used].split(batch_size):
        yield features[rows], labels[rows]


def _streamed_batches(
    classifier: EncoderClassifier,
    train: ImageDataset,
    batch_size: int,
    generator: torch.Generator,
    augment: bool,
    attack: TrainingAttack | None,
    drop_last: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    place = device_of(classifier)
    for images, labels in shuffled_batches(train, batch_size, place, generator, augment=augment, drop_last=drop_last):
        if attack is not None:
            images = label_attack(classifier, images, labels, attack, generator)
        with frozen(classifier), torch.no_grad():
            features = classifier.embed(images)
        require_finite(features, "encoder features")
        yield features, labels


def label_attack(
    classifier: nn.Module, images: Tensor, labels: Tensor, attack: TrainingAttack, generator: torch.Generator
) -> Tensor:
    """Return images (N, 3, H, W) that raise the cross-entropy of ``labels`` (N,): the attack of ALF's training.

    Eval mode; the start is uniform in the ball and not clipped to the image box before the first forward
    (``pgd_attack`` of ACL, DynACL and ASTrA).
    """
    budget = AttackStrategy.repeated(len(images), attack.epsilon, attack.steps, attack.step_size, images.device)
    return supervised_attack(classifier, images, labels, budget, generator=generator, clip_start=False).adversarial
