"""Adversarial full fine-tuning (AFF): TRADES over the branches of an encoder."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.attacks import KLDivergence, frozen, supervised_pgd
from astra_env.data import ImageDataset
from astra_env.errors import Diverged, InputError
from astra_env.evaluation.measures.batches import (
    device_of,
    require_alike,
    require_labels,
    shuffled_batches,
    used_images,
)
from astra_env.evaluation.probes.classifier import EncoderClassifier
from astra_env.evaluation.probes.linear import MOMENTUM, TrainingAttack
from astra_env.evaluation.probes.training_state import TrainingState, step_bar

DECAY_POINTS = (0.6, 0.8)
"""Fractions of the epochs after which the learning rate falls tenfold: 15 and 20 of 25."""

AT_THE_IMAGE = "the image itself"
"""The start of the attack."""


def finetune(
    target: nn.Module,
    train: ImageDataset,
    test: ImageDataset | None = None,
    *,
    epochs: int = 25,
    learning_rate: float = 0.1,
    weight_decay: float = 2e-4,
    batch_size: int = 128,
    beta: float = 6.0,
    augment: bool = True,
    attack: TrainingAttack | None = None,
    decay_points: Sequence[float] = DECAY_POINTS,
    natural_branch: str = "clean",
    drop_last: bool = False,
    head: nn.Linear | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    state_path: str | Path | None = None,
    progress: bool = False,
) -> EncoderClassifier:
    """Fine-tune a copy of an encoder and a head: CE(z_b(x), y) + beta * KL(p_b(x) || p_adv(x')), b the natural branch.

    ``natural_branch="clean"`` is AFF as DynACL 2023 and ASTrA 2025 publish it (``test_AFF.py``: both branches train,
    the adv branch is evaluated); "adv" is the single-route loss of LP-AFT, which leaves the clean branch's norms as
    they are. The attack starts at the image itself and maximises the divergence in eval mode; losses are taken in
    training mode, the natural images first. SGD with momentum .9, learning rate x.1 at 60 % and 80 % of the epochs.
    ACL 2020 fine-tunes otherwise (``train_trades.py``): one route, and a start of .001 * N(0, 1).

    Args:
        target: has ``embed(images[, branch])`` and ``embed_dim``; not changed.
        train: labelled training images.
        test: checked to fit ``train`` before any work is done; nothing is chosen on it.
        epochs: passes over ``train``.
        learning_rate: of all parameters.
        weight_decay: of all parameters.
        batch_size: images per step.
        beta: weight of the divergence.
        augment: crop (padding 4) and flip.
        attack: default 10 steps of 2/255 in 8/255.
        decay_points: fractions of the epochs after which the learning rate falls tenfold.
        natural_branch: BatchNorm branch of the natural images, "clean" or "adv".
        drop_last: leave out the last batch of an epoch when it is not whole (LP-AFT).
        head: where the head starts; default at zero. Copied.
        seed: of order and augmentation.
        device: where to compute; default where the encoder is.
        state_path: checkpoint written after every epoch; training continues from it when it is there.
        progress: show a progress bar.

    Returns:
        The classifier on its adv branch, images in [0, 1] -> logits.

    Raises:
        InputError: for data or numbers that cannot be used.
        CheckpointError: when ``state_path`` holds another training.
        Diverged: when the loss is not finite.
    """
    require_labels(train)
    if test is not None:
        require_alike(train, test)
    if epochs < 1:
        raise InputError(f"epochs: expected at least 1, got {epochs}")
    place = device_of(target) if device is None else torch.device(device)
    classifier = EncoderClassifier(deepcopy(target), len(train.classes)).to(place).requires_grad_(True)
    if head is not None:
        classifier.head.load_state_dict(head.state_dict())
    optimizer = torch.optim.SGD(classifier.parameters(), learning_rate, MOMENTUM, weight_decay=weight_decay)
    milestones = [round(point * epochs) for point in decay_points]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    generator = torch.Generator().manual_seed(seed)
    settings = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "beta": beta,
        "seed": seed,
        "attack_start": AT_THE_IMAGE,
        "natural_branch": natural_branch,
        "drop_last": drop_last,
    }
    state = TrainingState(state_path, settings, classifier, optimizer, schedule, generator)
    budget = attack or TrainingAttack()
    first = state.restore()
    used = used_images(len(train), batch_size, drop_last)
    with step_bar("fine-tuning", epochs, used, batch_size, first=first, progress=progress) as bar:
        for epoch in range(first, epochs):
            batches = shuffled_batches(train, batch_size, place, generator, augment=augment, drop_last=drop_last)
            for images, labels in batches:
                adversarial = trades_attack(classifier, images, labels, budget, natural_branch=natural_branch)
                classifier.train()
                loss = trades_loss(classifier, images, adversarial, labels, beta, natural_branch=natural_branch)
                if not bool(torch.isfinite(loss)):
                    raise Diverged(f"fine-tuning: the loss is {float(loss)} in epoch {epoch}; lower the learning rate")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.update()
            schedule.step()
            state.save(epoch + 1)
    return classifier.eval()


def trades_loss(
    classifier: EncoderClassifier,
    images: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    beta: float = 6.0,
    *,
    natural_branch: str = "clean",
) -> Tensor:
    """TRADES (Zhang et al. 2019) with natural images in one branch b and attacked ones in the adv branch.

    ``images`` and ``adversarial``: (N, 3, H, W) in [0, 1]; ``labels`` (N,). Returns the scalar
    ``CE(z_b(x), y) + beta * KL(p_b(x) || p_adv(x'))``, averaged over images; both arguments of KL have gradients.
    """
    natural = classifier(images, natural_branch)
    attacked = classifier(adversarial, "adv")
    divergence = F.kl_div(attacked.log_softmax(1), natural.softmax(1), reduction="batchmean")
    return F.cross_entropy(natural, labels) + beta * divergence


def trades_attack(
    classifier: EncoderClassifier,
    images: Tensor,
    labels: Tensor,
    attack: TrainingAttack,
    *,
    natural_branch: str = "clean",
) -> Tensor:
    """Return images (N, 3, H, W) whose adv-branch prediction is far from the natural branch's on the original.

    Starts at the image itself and ascends KL(p_b(x) || p_adv(x')) in eval mode (DynACL's and ASTrA's ``trades_loss``
    and ``trades_loss_dual``). With "adv" as the natural branch the divergence is at its minimum there: its gradient is
    zero but for rounding, which then decides the first step, in the published code as here. Measured on digits, 512
    images, a narrow ResNet: every image moves, in float32 and float64, and the divergence found after ten steps is 1 to
    3 % smaller than from TRADES's own start, the image plus .001 * N(0, 1).
    With "clean" there is a gradient from the first step on. Three seeds on digits, 15 epochs: accuracy under PGD-20 at
    8/255 is 95.2 % from the image and 95.6 % from TRADES's start, at 16/255 83.9 and 84.4 %.
    """
    with frozen(classifier), torch.no_grad():
        natural = classifier(images, natural_branch)
    return supervised_pgd(
        classifier,
        images,
        labels,
        epsilon=attack.epsilon,
        step_size=attack.step_size,
        steps=attack.steps,
        init=torch.zeros_like(images),
        objective=KLDivergence(natural),
        forward=lambda batch: classifier(batch, "adv"),
    )
