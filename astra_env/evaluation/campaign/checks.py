"""What an evaluation needs to its end is looked at before its first measurement."""

from collections.abc import Sequence

import torch

from astra_env.data import ImageDataset, label_fraction
from astra_env.data.subsets import stratified_indices
from astra_env.errors import AstraError, CheckpointError, ConfigError
from astra_env.evaluation.campaign.config import EvaluationConfig
from astra_env.evaluation.campaign.heads import protocol_of
from astra_env.evaluation.campaign.loading import LoadedNetwork
from astra_env.evaluation.measures.batches import require_labels, to_unit
from astra_env.evaluation.measures.robustness import is_right
from astra_env.evaluation.probes.classifier import EncoderClassifier


def require_finishable(
    config: EvaluationConfig, loaded: Sequence[LoadedNetwork], train: ImageDataset, test: ImageDataset
) -> None:
    """Raise the error that would end the evaluation of one of the networks later.

    Every network is given one test image; labels, held-out slices and packages are looked for.

    Raises:
        AstraError: naming the file, the field or the package, and the remedy.
    """
    if any(attack.startswith("autoattack") for attack in config.attacks):
        try:
            import pyautoattack  # noqa: F401
        except ImportError as error:
            raise ConfigError("attacks: autoattack needs pyautoattack; pip install 'astra-env[eval]'") from error
    require_labels(test)
    protocols = {protocol_of(config, network) for network in loaded}
    if protocols != {"none"}:
        require_labels(train)
        part = label_fraction(train, config.label_fraction, config.seed) if config.label_fraction < 1 else train
        if protocols & {"slf", "alf", "aff"} and len(config.head.learning_rate) > 1:
            stratified_indices(part, round(config.data.validation_fraction * len(part)), config.seed)
    for network in loaded:
        _require_logits(config, network, test)


@torch.no_grad()
def _require_logits(config: EvaluationConfig, loaded: LoadedNetwork, test: ImageDataset) -> None:
    model, classes = loaded.network, len(test.classes)
    if loaded.kind == "encoder":
        branch = loaded.branch if config.network.branch == "auto" else config.network.branch
        model = EncoderClassifier(model, classes, branch).eval()
    images = to_unit(test.images[:1].cpu())
    try:
        is_right(model, images, test.labels[:1].cpu(), classes)
    except AstraError as error:
        raise type(error)(f"{loaded.path}: {error}") from error
    except (RuntimeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{loaded.path}: cannot take images of {tuple(images.shape[1:])} ({reason}); set --data.image_size"
        ) from error
