"""Losses on feature tensors: pure functions without state."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from astra_env.errors import InputError


def interleave(first: Tensor, second: Tensor) -> Tensor:
    """Return rows first_0, second_0, first_1, second_1, ...; both (N, ...), the result (2N, ...)."""
    return torch.stack((first, second), dim=1).flatten(0, 1)


def nt_xent(
    features: Tensor, temperature: float = 0.5, reduction: str = "mean", *, detach_keys: bool = False
) -> Tensor:
    """Normalised temperature-scaled cross-entropy (SimCLR, Chen et al. 2020, equation 1).

    Each row's loss is ``-log(exp(s_pos / t) / sum over all other rows exp(s / t))`` with cosine similarities ``s``;
    the positive stays in the sum.

    Args:
        features: (2B, D) float; rows 2k and 2k+1 are the two views of image k.
        temperature: t > 0.
        reduction: "mean" -> scalar, "sum" -> scalar, "none" -> (2B,).
        detach_keys: hold the second factor of every similarity constant in the gradient (RoCL).

    Raises:
        InputError: for an odd number of rows, fewer than four, or an unknown reduction.
    """
    rows = features.shape[0]
    if features.dim() != 2 or rows % 2 or rows < 4:
        raise InputError(f"nt_xent: expected features (2B, D) with B >= 2, got shape {tuple(features.shape)}")
    similarity = _similarity(features, temperature, detach_keys)
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


def multi_view_nt_xent(
    features: Tensor, temperature: float = 0.5, positives: str = "mean", *, detach_keys: bool = False
) -> Tensor:
    """NT-Xent with more than one positive: every other view of an anchor's image (RoCL 2020, AdvCL 2021).

    ``-log(exp(s_p / t) / sum over all other rows exp(s / t))`` for every positive p of an anchor, summed (RoCL) or
    averaged (AdvCL) over its V - 1 positives and averaged over anchors. With two views both are :func:`nt_xent`.

    Args:
        features: (B, V, D) float; V views of every image.
        temperature: t > 0.
        positives: "mean" or "sum".
        detach_keys: as in :func:`nt_xent`.

    Returns:
        A scalar.

    Raises:
        InputError: for another shape, or an unknown way to combine positives.
    """
    if features.dim() != 3 or features.shape[0] < 2 or features.shape[1] < 2:
        raise InputError(
            f"multi_view_nt_xent: expected features (B, V, D), B and V at least 2, got {tuple(features.shape)}"
        )
    if positives not in ("mean", "sum"):
        raise InputError(f"positives: expected 'mean' or 'sum', got {positives!r}")
    images, views = features.shape[:2]
    similarity = _similarity(features.flatten(0, 1), temperature, detach_keys)
    itself = torch.eye(images * views, dtype=torch.bool, device=features.device)
    losses = -similarity.masked_fill(itself, float("-inf")).log_softmax(1)
    image = torch.arange(images, device=features.device).repeat_interleave(views)
    positive = (image[:, None] == image[None]) & ~itself
    total = losses.masked_fill(~positive, 0.0).sum(1).mean()
    return total / (views - 1) if positives == "mean" else total


def barlow_twins(first: Tensor, second: Tensor, redundancy: float = 0.005) -> Tensor:
    """Barlow Twins' loss: no negatives, but features that agree and do not repeat each other (Zbontar et al. 2021).

    ``sum_i (1 - C_ii)^2 + redundancy * sum_{i != j} C_ij^2`` with C (D, D) the correlation over the batch of features
    standardised per dimension.

    Args:
        first: (N, D) features of one view of every image.
        second: (N, D) features of the other.
        redundancy: weight of the off-diagonal.

    Returns:
        A scalar, divided by D so that its size does not depend on the feature's length.
    """
    count, size = first.shape
    standard = [(f - f.mean(0)) / (f.var(0, unbiased=False) + 1e-5).sqrt() for f in (first, second)]
    correlation = standard[0].T @ standard[1] / count
    diagonal = correlation.diagonal()
    agreement = (1 - diagonal).square().sum()
    repetition = correlation.square().sum() - diagonal.square().sum()
    return (agreement + redundancy * repetition) / size


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


def _similarity(features: Tensor, temperature: float, detach_keys: bool) -> Tensor:
    """Return the cosines of all rows (N, D), over temperature: queries are rows, keys are columns."""
    queries = F.normalize(features, dim=1)
    keys = queries.detach() if detach_keys else queries
    return queries @ keys.T / temperature


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return losses.mean()
    if reduction == "sum":
        return losses.sum()
    if reduction == "none":
        return losses
    raise InputError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
