"""Adversarial full fine-tuning (AFF): TRADES with a clean and an adversarial branch."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.attacks import KLDivergence, frozen, supervised_pgd
from astra_env.data import ImageDataset
from astra_env.errors import Diverged, InputError
from astra_env.evaluation.measures.batches import device_of, require_alike, require_labels, shuffled_batches
from astra_env.evaluation.probes.classifier import EncoderClassifier
from astra_env.evaluation.probes.linear import MOMENTUM, TrainingAttack
from astra_env.evaluation.probes.training_state import TrainingState, step_bar

DECAY_POINTS = (0.6, 0.8)
"""Fractions of the epochs after which the learning rate falls tenfold: 15 and 20 of 25."""

START_SCALE = 0.001
"""Standard deviation of the normal start of TRADES's attack."""


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
    head: nn.Linear | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    state_path: str | Path | None = None,
    progress: bool = False,
) -> EncoderClassifier:
    """Fine-tune a copy of an encoder and a head: CE(clean branch) + beta * KL(adv || clean).

    The attack maximises the divergence of the adv branch from the clean branch in eval mode; losses are taken in
    training mode (ACL 2020, ASTrA 2025). SGD with momentum .9, learning rate x.1 at 60 % and 80 % of the epochs.

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
        head: where the head starts; default at zero. Copied.
        seed: of order, augmentation and the attack's start.
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
    settings = {"epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "beta": beta, "seed": seed}
    state = TrainingState(state_path, settings, classifier, optimizer, schedule, generator)
    budget = attack or TrainingAttack()
    first = state.restore()
    with step_bar("fine-tuning", epochs, len(train), batch_size, first=first, progress=progress) as bar:
        for epoch in range(first, epochs):
            for images, labels in shuffled_batches(train, batch_size, place, generator, augment=augment):
                adversarial = trades_attack(classifier, images, labels, budget, generator)
                classifier.train()
                loss = trades_two_branches(classifier, images, adversarial, labels, beta)
                if not bool(torch.isfinite(loss)):
                    raise Diverged(f"fine-tuning: the loss is {float(loss)} in epoch {epoch}; lower the learning rate")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.update()
            schedule.step()
            state.save(epoch + 1)
    return classifier.eval()


def trades_two_branches(
    classifier: EncoderClassifier, images: Tensor, adversarial: Tensor, labels: Tensor, beta: float = 6.0
) -> Tensor:
    """TRADES (Zhang et al. 2019) with clean images in the clean branch and attacked ones in the adv branch.

    ``images`` and ``adversarial``: (N, 3, H, W) in [0, 1]; ``labels`` (N,). Returns the scalar
    ``CE(z_clean(x), y) + beta * KL(p_clean(x) || p_adv(x'))``, averaged over images.
    """
    clean = classifier(images, "clean")
    attacked = classifier(adversarial, "adv")
    divergence = F.kl_div(attacked.log_softmax(1), clean.softmax(1), reduction="batchmean")
    return F.cross_entropy(clean, labels) + beta * divergence


def trades_attack(
    classifier: EncoderClassifier, images: Tensor, labels: Tensor, attack: TrainingAttack, generator: torch.Generator
) -> Tensor:
    """Return images (N, 3, H, W) whose adv-branch prediction is far from the clean branch's on the original.

    Starts at the image plus .001 * N(0, 1) and ascends the divergence in eval mode (TRADES).
    """
    with frozen(classifier), torch.no_grad():
        clean_logits = classifier(images, "clean")
    start = START_SCALE * torch.randn(images.shape, generator=generator, device=generator.device).to(images)
    return supervised_pgd(
        classifier,
        images,
        labels,
        epsilon=attack.epsilon,
        step_size=attack.step_size,
        steps=attack.steps,
        init=start,
        objective=KLDivergence(clean_logits),
        forward=lambda batch: classifier(batch, "adv"),
    )
