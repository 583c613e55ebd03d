"""LP-AFT: linear probing, then adversarial full fine-tuning, on pseudo-labels (DynACL++, Luo et al. 2023; ASTrA++).

No labels are used: k-means clusters of the clean branch's embeddings stand in for classes. What comes out is an encoder
again, to be evaluated as any other.

The published code has two scripts. Both train the adversarial route alone: the head on it, then CE and KL on it. They
differ in what remains:

- ``branches="adv"`` (``LPAFT.py``, for SLF and ALF): the adversarial route as a network with single norms.
- ``branches="both"`` (``LPAFT_AFF.py``, for AFF and semi-supervised training): the network with both branches;
  the clean norms stay what they were in pre-training, over convolutions that have moved.

``LPAFT_AFF.py`` calls the two-branch loss, but with ``natural_mode='pgd'``: natural images go through the adversarial
branch, so it is the single-route loss. CE on the clean branch comes only later, in AFF itself.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from astra_env.config.paths import PATH
from astra_env.config.types import IntFrom2, NonNegativeFinite, NonNegativeInt, PositiveInt
from astra_env.data import ImageDataset
from astra_env.data.clustering import kmeans_labels
from astra_env.evaluation.probes.classifier import EncoderClassifier
from astra_env.evaluation.probes.finetuning import finetune
from astra_env.evaluation.probes.linear import TRAINING_ATTACK, extract_features, linear_probe
from astra_env.evaluation.probes.single_route import single_route

DECAY_POINTS = (0.4, 0.8)
"""Fractions of the fine-tuning after which its learning rate falls tenfold: epochs 10 and 20 of 25."""


@dataclass
class LPAFTConfig:
    """How an encoder is post-processed; the defaults are the published ones for CIFAR-10."""

    branches: Literal["adv", "both"] = "adv"
    """BatchNorm branches of the result: adv, single norms, for slf and alf; both, for aff and semi_supervised."""
    clusters: IntFrom2 = 10
    """Number of k-means clusters: of pseudo-classes."""
    probe_epochs: PositiveInt = 10
    """Epochs of the linear probe on the pseudo-labels."""
    probe_learning_rate: NonNegativeFinite = 0.01
    """Learning rate of the linear probe; constant."""
    epochs: PositiveInt = 25
    """Epochs of the adversarial fine-tuning."""
    learning_rate: NonNegativeFinite = 0.1
    """Learning rate of the fine-tuning; x.1 at 40 % and 80 % of its epochs."""
    weight_decay: NonNegativeFinite = 1e-4
    """Weight decay of both."""
    beta: NonNegativeFinite = 6.0
    """Weight of TRADES's divergence."""
    attack_steps: NonNegativeInt = 10
    """Steps of 2/255 in 8/255 of the fine-tuning's attack."""
    batch_size: IntFrom2 = 512
    """Images per step."""
    augment: bool = True
    """Crop (padding 4) and flip."""
    seed: int = 0
    """Of clusters, order, augmentation and attack."""
    device: str = "auto"
    """cpu, cuda, cuda:N or auto."""
    data: str | None = None
    """Data set; default the run's own."""
    root: str | None = field(default=None, metadata=PATH)
    """Folder of the data set; default the run's own."""
    image_size: int | None = None
    """Side of the images; default the run's own."""
    max_images: int | None = None
    """Use only so many images; default the run's own choice."""


def pseudo_labelled(
    encoder: nn.Module, images: ImageDataset, config: LPAFTConfig, device: torch.device
) -> ImageDataset:
    """Return ``images`` labelled with their k-means cluster in the encoder's clean branch.

    Raises:
        InputError: for features that are not finite, or fewer images than clusters.
    """
    probe = EncoderClassifier(encoder, 1, "clean").to(device)
    features, _ = extract_features(probe, images, batch_size=config.batch_size)
    labels = kmeans_labels(features, config.clusters, config.seed).to(images.labels.device)
    return replace(images, labels=labels, classes=tuple(f"cluster {index}" for index in range(config.clusters)))


def lp_aft(
    encoder: nn.Module,
    images: ImageDataset,
    config: LPAFTConfig,
    *,
    device: torch.device | str = "cpu",
    state_path: str | Path | None = None,
    progress: bool = False,
) -> nn.Module:
    """Cluster, probe, fine-tune; returns a new encoder on ``device``, in eval mode; ``encoder`` keeps its weights.

    Which branches it has is ``config.branches``; an encoder without branches stays one. The head is trained in eval
    mode at a constant rate; the fine-tuning is TRADES on the adversarial route. Incomplete batches are left out.
    Deviation: k-means is scikit-learn's, above 10,000 images on minibatches, where the authors use kmeans-pytorch.

    Args:
        encoder: has ``embed(images, branch)`` and ``embed_dim``.
        images: labels, if there are any, are not looked at.
        config: the settings.
        device: where to compute.
        state_path: checkpoint of the fine-tuning, written after every epoch; it continues from there.
        progress: show progress bars.

    Raises:
        InputError: for an encoder or images that cannot be used.
        CheckpointError: when ``state_path`` holds another fine-tuning.
        Diverged: when the loss is not finite.
    """
    place = torch.device(device)
    labelled = pseudo_labelled(encoder, images, config, place)
    common: dict[str, Any] = {
        "weight_decay": config.weight_decay,
        "batch_size": config.batch_size,
        "augment": config.augment,
        "drop_last": True,
        "seed": config.seed,
        "device": place,
        "progress": progress,
    }
    probed = linear_probe(
        encoder,
        labelled,
        branch="adv",
        epochs=config.probe_epochs,
        learning_rate=config.probe_learning_rate,
        decay_points=(),
        **common,
    )
    tuned = finetune(
        encoder,
        labelled,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        beta=config.beta,
        attack=replace(TRAINING_ATTACK, steps=config.attack_steps),
        decay_points=DECAY_POINTS,
        natural_branch="adv",
        head=probed.head,
        state_path=state_path,
        **common,
    )
    found: nn.Module = tuned.encoder
    return (single_route(found) if config.branches == "adv" else found).eval()
