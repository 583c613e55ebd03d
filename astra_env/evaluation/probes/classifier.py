"""An encoder's branch and a linear head as one classifier of images in [0, 1]."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from astra_env.errors import InputError


class EncoderClassifier(nn.Module):
    """Images (N, 3, H, W) in [0, 1] -> logits (N, num_classes): ``head(encoder.embed(images, branch))``.

    Encoders without branches (no attribute ``branches``) are called as ``embed(images)``, for every branch alike.

    Attributes:
        encoder: the encoder; shared with the caller, never copied.
        branch: BatchNorm branch of plain calls, "adv" or "clean".
        head: the linear layer, zero-initialised, so that a new classifier prefers no class.
    """

    encoder: Any

    def __init__(self, encoder: nn.Module, num_classes: int, branch: str = "adv") -> None:
        super().__init__()
        branches = getattr(encoder, "branches", ("clean", "adv"))
        if branch not in branches:
            raise InputError(f"branch: expected one of {', '.join(branches)}, got {branch!r}")
        self.encoder = encoder
        self.branch = branch
        self.head = skip_init(nn.Linear, embed_dim(encoder), num_classes)  # draws no global random numbers
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def embed(self, images: Tensor, branch: str | None = None) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> embeddings (N, embed_dim) of the branch, by default the classifier's own."""
        if hasattr(self.encoder, "branches"):
            return self.encoder.embed(images, branch or self.branch)
        return self.encoder.embed(images)

    def forward(self, images: Tensor, branch: str | None = None) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] -> logits (N, num_classes) of the branch, by default the classifier's own."""
        return self.head(self.embed(images, branch))


def embed_dim(encoder: nn.Module) -> int:
    """Return the length of the encoder's embeddings; raises InputError when it is no encoder."""
    size = getattr(encoder, "embed_dim", None)
    if not isinstance(size, int) or not hasattr(encoder, "embed"):
        raise InputError(
            f"encoder: expected a network with embed(images) and embed_dim, got {type(encoder).__name__}; "
            "load it through astra_env.models or astra_env.evaluation.load_network"
        )
    return size


def require_finite(values: Tensor, what: str) -> None:
    """Raise InputError when ``values`` hold NaN or infinity: a network like that has no accuracy."""
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"{what}: expected finite values, got NaN or infinity; are the checkpoint's weights whole?")
