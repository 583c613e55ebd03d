"""What must be known about exported weights beside the weights."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from astra_env.errors import CheckpointError

FORMAT = "astra_env.export/1"


@dataclass(frozen=True)
class ExportMetadata:
    """How to rebuild an exported network.

    Attributes:
        architecture: resnet18, bottleneck_resnet26, resnet (other depths), preact_resnet18 or wide_resnet.
        names: whose parameter names the file uses: "torchvision" (timm's are the same) or "astra_env".
        stem: "cifar" (3x3 convolution, stride 1, no max-pool) or "imagenet".
        width: channels of the first stage.
        blocks: residual blocks per stage.
        num_classes: 0 for an encoder.
        embed_dim: length of the pooled features.
        mean: per channel, subtracted from inputs in [0, 1]; None for none.
        std: per channel, divided by; None for none.
        branch: BatchNorm branch that was folded; None where the network had none.
        source: SHA-256 of the weights it was exported from.
        comment: in words, what a reader with torchvision or timm must do.
    """

    architecture: str
    names: str
    stem: str
    width: int
    blocks: tuple[int, ...]
    num_classes: int
    embed_dim: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    branch: str | None
    source: str
    comment: str
    format: str = FORMAT

    @property
    def normalize(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(mean, std), or None."""
        return None if self.mean is None or self.std is None else (self.mean, self.std)

    def to_json(self) -> str:
        """Return the metadata as JSON."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str, name: str) -> "ExportMetadata":
        """Read what :meth:`to_json` wrote; raises CheckpointError naming the file ``name``."""
        try:
            values: dict[str, Any] = json.loads(text)
            for key in ("blocks", "mean", "std"):
                values[key] = None if values[key] is None else tuple(values[key])
            metadata = cls(**values)
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{name}: its metadata cannot be read ({error}); export the network again") from error
        if metadata.format != FORMAT:
            raise CheckpointError(f"{name}: expected format {FORMAT}, got {metadata.format!r}; use a newer astra-env")
        return metadata
