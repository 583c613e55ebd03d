"""Networks of runs whose encoder is a user's function or a model of timm: rebuilt by the run's configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from astra_env.config.reading import from_dict
from astra_env.config.schema import TargetConfig
from astra_env.errors import CheckpointError, ConfigError
from astra_env.models import load_official
from astra_env.models.build import build_target
from astra_env.models.own_backbone import TIMM


def own_backbone_network(
    checkpoint: Mapping[str, Any], run: Mapping[str, Any], file: Path, backbone: str | None
) -> nn.Module | None:
    """Return the target network of a run with such an encoder, with its weights; None for other runs.

    Args:
        checkpoint: holds the weights.
        run: the configuration of the run that the checkpoint lies in.
        file: the checkpoint, for messages.
        backbone: the code that may be imported. What a run names is imported only when it is named here, too; timm is
            no stranger.

    Raises:
        ConfigError: when the code may not be imported, or cannot.
        CheckpointError: when the weights do not fit.
    """
    section = run.get("target") or {}
    name = str(section.get("backbone", ""))
    if ":" not in name:
        return None
    if not name.startswith(TIMM) and backbone != name:
        raise ConfigError(
            f"network.backbone: the encoder of {file} is the code {name!r}, which is imported only when asked for: "
            f"--network.backbone {name}"
        )
    known = {key: value for key, value in section.items() if key in TargetConfig.__dataclass_fields__}
    network = build_target(from_dict(TargetConfig, known), 0, torch.device("cpu"))
    try:
        return load_official(network, checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
