"""From a loaded network to a classifier: training a head or the whole network, once, and keeping it in a file."""

import hashlib
import json
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from astra_env.data import ImageDataset, label_fraction, split_validation
from astra_env.errors import CheckpointError
from astra_env.evaluation.campaign.config import EvaluationConfig
from astra_env.evaluation.campaign.loading import LoadedNetwork
from astra_env.evaluation.measures.robustness import clean_accuracy
from astra_env.evaluation.probes.classifier import EncoderClassifier
from astra_env.evaluation.probes.finetuning import AT_THE_IMAGE, finetune
from astra_env.evaluation.probes.linear import TRAINING_ATTACK, UNCLIPPED, linear_probe
from astra_env.evaluation.probes.semi_supervision import semi_supervised
from astra_env.storage.checkpoint import load_checkpoint, save_checkpoint

ATTACK_STARTS = {"alf": UNCLIPPED, "aff": AT_THE_IMAGE, "semi_supervised": UNCLIPPED}
"""Where the training attack of a protocol starts; classifiers of another start are trained anew."""


@dataclass(frozen=True)
class Trained:
    """A classifier and how it came to be.

    Attributes:
        classifier: images in [0, 1] -> logits.
        description: plain values for the report: protocol, learning rate, images, validation accuracies.
        settings: what the classifier depends on, a part of the description.
    """

    classifier: nn.Module
    description: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=lambda: {"protocol": "none"})


def protocol_of(config: EvaluationConfig, loaded: LoadedNetwork) -> str:
    """Return the protocol to use; raises CheckpointError for an encoder that is to be evaluated without a head."""
    protocol = config.protocol
    if protocol == "auto":
        protocol = "slf" if loaded.kind == "encoder" else "none"
    if protocol == "none" and loaded.kind == "encoder":
        raise CheckpointError(
            f"{loaded.path}: is an encoder without a classifier head; choose --protocol slf, alf, aff or "
            "semi_supervised"
        )
    return protocol


def classifier_for(
    config: EvaluationConfig,
    loaded: LoadedNetwork,
    train: ImageDataset,
    test: ImageDataset,
    folder: Path,
    device: torch.device,
    *,
    progress: bool = False,
) -> Trained:
    """Return the classifier that the protocol makes of a network, from its file in ``folder`` when it is there.

    Where several learning rates are given, the one with the best clean accuracy on a held-out slice of the training
    images is used, and the classifier is then trained on all of them; the test images are only checked to fit.

    Raises:
        InputError: for data or numbers that cannot be used.
        CheckpointError: for an encoder without a protocol.
        Diverged: when a loss is not finite.
    """
    protocol = protocol_of(config, loaded)
    if protocol == "none":
        return Trained(loaded.network.to(device), {"protocol": "none"})
    wanted = _settings(config, protocol, loaded, train)
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:12]
    file = folder / f"{loaded.name.replace('/', '_')}-{protocol}-{key}.pt"
    if file.exists():
        _forget_training(file)
        classifier = restored_classifier(file, loaded).to(device)
        return Trained(classifier, load_checkpoint(file)["description"], wanted)
    if protocol == "semi_supervised":
        found = semi_supervised(
            loaded.network,
            train,
            config.semi_supervised,
            label_fraction=config.label_fraction,
            validation_fraction=config.data.validation_fraction,
            augment=config.head.augment,
            seed=config.seed,
            device=device,
            state_path=file,
            progress=progress,
        )
        classifier, description = found.classifier, {**wanted, **found.description}
    else:
        classifier, description = _fit_best(config, wanted, loaded, train, test, file, device, progress)
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(file, {"classifier": classifier.state_dict(), "description": description})
    _forget_training(file)
    return Trained(classifier, description, wanted)


def _settings(config: EvaluationConfig, protocol: str, loaded: LoadedNetwork, train: ImageDataset) -> dict[str, Any]:
    """Return everything a trained classifier depends on, as plain values."""
    wanted: dict[str, Any] = {
        "protocol": protocol,
        "weights": loaded.digest,
        "seed": config.seed,
        "augment": config.head.augment,
        "label_fraction": config.label_fraction,
    }
    if protocol in ATTACK_STARTS:
        wanted["attack_start"] = ATTACK_STARTS[protocol]
    if protocol == "semi_supervised":
        share = config.data.validation_fraction if config.semi_supervised.choose == "held_out" else 0.0
        options = asdict(config.semi_supervised)
        return {**wanted, "images": len(train), "validation_fraction": share, "semi_supervised": options}
    return {
        **wanted,
        "branch": loaded.branch if config.network.branch == "auto" else config.network.branch,
        "images": len(_labelled_part(config, train)),
        "learning_rates": config.learning_rates(protocol, train.name),
        "epochs": config.head.epochs,
        "batch_size": config.head.batch_size,
        "weight_decay": config.head.weight_decay,
    }


def _labelled_part(config: EvaluationConfig, train: ImageDataset) -> ImageDataset:
    return label_fraction(train, config.label_fraction, config.seed) if config.label_fraction < 1 else train


def _fit_best(
    config: EvaluationConfig,
    wanted: dict[str, Any],
    loaded: LoadedNetwork,
    train: ImageDataset,
    test: ImageDataset,
    file: Path,
    device: torch.device,
    progress: bool,
) -> tuple[EncoderClassifier, dict[str, Any]]:
    """Train by slf, alf or aff, of several learning rates with the one that held-out training images choose."""
    part, rates = _labelled_part(config, train), wanted["learning_rates"]

    def fit(rate: float, images: ImageDataset, state: Path) -> EncoderClassifier:
        protocol, branch = wanted["protocol"], wanted["branch"]
        return _fit(config, protocol, branch, loaded.network, images, test, rate, device, state, progress)

    description: dict[str, Any] = {**wanted, "learning_rate": rates[0]}
    if len(rates) > 1:
        rest, held_out = split_validation(part, round(config.data.validation_fraction * len(part)), config.seed)
        states = {rate: file.with_suffix(f".{rate:g}.training.pt") for rate in rates}
        scores = {rate: clean_accuracy(fit(rate, rest, states[rate]), held_out) for rate in rates}
        description["learning_rate"] = max(scores, key=lambda rate: scores[rate].correct)
        description["validation"] = {str(rate): score.as_dict() for rate, score in scores.items()}
    return fit(description["learning_rate"], part, file.with_suffix(".training.pt")), description


def _forget_training(file: Path) -> None:
    """Remove the states that led to a finished classifier; a process killed before it got here leaves them behind."""
    for left in file.parent.glob(f"{file.stem}.*training.pt"):
        left.unlink()


def _fit(
    config: EvaluationConfig,
    protocol: str,
    branch: str,
    network: nn.Module,
    train: ImageDataset,
    test: ImageDataset,
    learning_rate: float,
    device: torch.device,
    state: Path | None,
    progress: bool,
) -> EncoderClassifier:
    head = config.head
    common: dict[str, Any] = {
        "epochs": head.epochs,
        "learning_rate": learning_rate,
        "weight_decay": head.weight_decay,
        "augment": head.augment,
        "seed": config.seed,
        "device": device,
        "state_path": state,
        "progress": progress,
    }
    if protocol == "aff":
        return finetune(network, train, test, batch_size=head.batch_size or 128, **common)
    return linear_probe(
        network,
        train,
        test,
        branch=branch,
        batch_size=head.batch_size or 512,
        attack=TRAINING_ATTACK if protocol == "alf" else None,
        **common,
    )


def restored_classifier(file: str | Path, loaded: LoadedNetwork) -> EncoderClassifier:
    """Return the classifier that an evaluation kept in ``file``, on the CPU and in eval mode.

    Raises CheckpointError when the file holds none, or one that was trained on other weights than ``loaded``'s.
    """
    stored = load_checkpoint(file)
    if not {"classifier", "description"} <= set(stored):
        raise CheckpointError(f"{file}: holds no trained head; give a file that evaluate.py wrote under OUT/models")
    description = stored["description"]
    if description["weights"] != loaded.digest:
        raise CheckpointError(f"{file}: was trained on other weights than {loaded.path}; evaluate that network first")
    branch = description.get("branch", "adv") if description["protocol"] != "aff" else "adv"
    classifier = EncoderClassifier(deepcopy(loaded.network).cpu(), len(stored["classifier"]["head.weight"]), branch)
    classifier.load_state_dict(stored["classifier"])
    return classifier.eval()
