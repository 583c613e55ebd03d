"""From a loaded network to a classifier: training a head or the whole network, once, and keeping it in a file."""

import hashlib
import json
from copy import deepcopy
from dataclasses import dataclass
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
from astra_env.evaluation.probes.finetuning import finetune
from astra_env.evaluation.probes.linear import linear_probe
from astra_env.storage.checkpoint import load_checkpoint, save_checkpoint


@dataclass(frozen=True)
class Trained:
    """A classifier and how it came to be.

    Attributes:
        classifier: images in [0, 1] -> logits.
        description: plain values for the report: protocol, learning rate, images, validation accuracies.
    """

    classifier: nn.Module
    description: dict[str, Any]


def protocol_of(config: EvaluationConfig, loaded: LoadedNetwork) -> str:
    """Return the protocol to use; raises CheckpointError for an encoder that is to be evaluated without a head."""
    protocol = config.protocol
    if protocol == "auto":
        protocol = "slf" if loaded.kind == "encoder" else "none"
    if protocol == "none" and loaded.kind == "encoder":
        raise CheckpointError(
            f"{loaded.path}: is an encoder without a classifier head; choose --protocol slf, alf or aff"
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
    """
    protocol = protocol_of(config, loaded)
    if protocol == "none":
        return Trained(loaded.network.to(device), {"protocol": "none"})
    branch = loaded.branch if config.network.branch == "auto" else config.network.branch
    part = label_fraction(train, config.label_fraction, config.seed) if config.label_fraction < 1 else train
    rates = config.learning_rates(protocol, train.name)
    wanted = {
        "protocol": protocol,
        "branch": branch,
        "images": len(part),
        "learning_rates": rates,
        "weights": loaded.digest,
        "seed": config.seed,
        "epochs": config.head.epochs,
        "batch_size": config.head.batch_size,
        "weight_decay": config.head.weight_decay,
        "augment": config.head.augment,
        "label_fraction": config.label_fraction,
    }
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:12]
    file = folder / f"{loaded.name.replace('/', '_')}-{protocol}-{key}.pt"
    if file.exists():
        _forget_training(file)
        return Trained(restored_classifier(file, loaded).to(device), load_checkpoint(file)["description"])

    def fit(rate: float, images: ImageDataset, state: Path | None) -> EncoderClassifier:
        return _fit(config, protocol, branch, loaded.network, images, test, rate, device, state, progress)

    description: dict[str, Any] = {**wanted, "learning_rate": rates[0]}
    if len(rates) > 1:
        rest, held_out = split_validation(part, round(config.data.validation_fraction * len(part)), config.seed)
        states = {rate: file.with_suffix(f".{rate:g}.training.pt") for rate in rates}
        scores = {rate: clean_accuracy(fit(rate, rest, states[rate]), held_out) for rate in rates}
        description["learning_rate"] = max(scores, key=lambda rate: scores[rate].correct)
        description["validation"] = {str(rate): score.as_dict() for rate, score in scores.items()}
    state = file.with_suffix(".training.pt")
    classifier = fit(description["learning_rate"], part, state)
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(file, {"classifier": classifier.state_dict(), "description": description})
    _forget_training(file)
    return Trained(classifier, description)


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
        adversarial=protocol == "alf",
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
    branch = "adv" if description["protocol"] == "aff" else description["branch"]
    classifier = EncoderClassifier(deepcopy(loaded.network).cpu(), len(stored["classifier"]["head.weight"]), branch)
    classifier.load_state_dict(stored["classifier"])
    return classifier.eval()
