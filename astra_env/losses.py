"""Losses on feature tensors: pure functions without state."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from astra_env.errors import InputError


def interleave(first: Tensor, second: Tensor) -> Tensor:
    """Return rows first_0, second_0, first_1, second_1, ...; both (N, ...), the result (2N, ...)."""
    return torch.stack((first, second), dim=1).flatten(0, 1)


def nt_xent(features: Tensor, temperature: float = 0.5, reduction: str = "mean") -> Tensor:
    """Normalised temperature-scaled cross-entropy (SimCLR, Chen et al. 2020, equation 1).

    Each row's loss is ``-log(exp(s_pos / t) / sum over all other rows exp(s / t))`` with cosine similarities ``s``;
    the positive stays in the sum.

    Args:
        features: (2B, D) float; rows 2k and 2k+1 are the two views of image k.
        temperature: t > 0.
        reduction: "mean" -> scalar, "sum" -> scalar, "none" -> (2B,).

    Raises:
        InputError: for an odd number of rows, fewer than four, or an unknown reduction.
    """
    rows = features.shape[0]
    if features.dim() != 2 or rows % 2 or rows < 4:
        raise InputError(f"nt_xent: expected features (2B, D) with B >= 2, got shape {tuple(features.shape)}")
    normalised = F.normalize(features, dim=1)
    similarity = normalised @ normalised.T / temperature
    itself = torch.eye(rows, dtype=torch.bool, device=features.device)
    partner = torch.arange(rows, device=features.device) ^ 1
    losses = F.cross_entropy(similarity.masked_fill(itself, float("-inf")), partner, reduction="none")
    return _reduce(losses, reduction)


def mixed_nt_xent(
    clean_features: Tensor, adv_features: Tensor, temperature: float = 0.5, reduction: str = "mean"
) -> Tensor:
    """NT-Xent whose positive pairs are the clean and the adversarial form of each view (ASTrA's mixed loss).

    Args:
        clean_features: (N, D); row i is view i.
        adv_features: (N, D); row i is view i under attack.
        temperature: t > 0.
        reduction: as in :func:`nt_xent`; "none" gives (2N,) in the order clean_0, adv_0, clean_1, ...
    """
    return nt_xent(interleave(clean_features, adv_features), temperature, reduction)


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared distance of matching unit-norm rows (Wang & Isola 2020, alpha = 2); (N, D) twice -> scalar."""
    return (F.normalize(first, dim=1) - F.normalize(second, dim=1)).square().sum(1).mean()


def uniformity(features: Tensor, t: float = 2.0) -> Tensor:
    """Log of the mean Gaussian potential of all pairs of unit-norm rows (Wang & Isola 2020); (N, D) -> scalar <= 0."""
    normalised = F.normalize(features, dim=1)
    squared = (2 - 2 * normalised @ normalised.T).clamp_min(0)
    rows = features.shape[0]
    itself = torch.eye(rows, dtype=torch.bool, device=features.device)
    return (-t * squared).masked_fill(itself, float("-inf")).logsumexp((0, 1)) - math.log(rows * (rows - 1))


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return losses.mean()
    if reduction == "sum":
        return losses.sum()
    if reduction == "none":
        return losses
    raise InputError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
