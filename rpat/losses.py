"""The losses of supervised robust-perception training: pure functions of logits without state.

Logits are float (N, C). Divergences are means over the batch, as ``reduction="batchmean"`` gives them. Nothing is
detached here: a caller that wants a target without gradient passes one.
"""

import torch.nn.functional as F
from torch import Tensor

TINY = 1e-12
"""Added inside logarithms of probabilities (MART, Wang et al. 2020)."""

MEAN_FLOOR = 1e-8
"""Smallest probability of the mixture in the Jensen-Shannon divergence (Tack et al. 2022)."""


def robust_perception_loss(logits_mix: Tensor, logits_clean: Tensor, logits_adv: Tensor, rate: float = 0.5) -> Tensor:
    """Mean squared distance between the perception of the mixed input and the mixed perceptions (RPAT 2025).

    Args:
        logits_mix: (N, C), logits of ``rate * x + (1 - rate) * x'``.
        logits_clean: (N, C), logits of x.
        logits_adv: (N, C), logits of x'.
        rate: share of the clean input in the mixture, in [0, 1].

    Returns:
        Scalar, the mean over images and classes.
    """
    return F.mse_loss(logits_mix, rate * logits_clean + (1 - rate) * logits_adv)


def trades_kl(logits_adv: Tensor, logits_clean: Tensor) -> Tensor:
    """KL(p(x) || p(x')) with gradient to both sides (TRADES, Zhang et al. 2019, equation 5, without beta)."""
    return F.kl_div(logits_adv.log_softmax(1), logits_clean.softmax(1), reduction="batchmean")


def mart_loss(logits_adv: Tensor, logits_clean: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Boosted cross-entropy and misclassification-weighted divergence of MART (Wang et al. 2020, equations 8, 11).

    Args:
        logits_adv: (N, C), logits of x'.
        logits_clean: (N, C), logits of x.
        labels: (N,) int64.

    Returns:
        Two scalars: cross-entropy plus ``-log(1 - p)`` of the likeliest wrong class under attack, and the mean of
        ``KL(p(x) || p(x')) * (1 - p_y(x))``, without its factor beta.
    """
    column = labels[:, None]
    probabilities_adv, probabilities = logits_adv.softmax(1), logits_clean.softmax(1)
    wrong = probabilities_adv.scatter(1, column, -1.0).argmax(1, keepdim=True)
    margin = -(1.0001 - probabilities_adv.gather(1, wrong) + TINY).log().mean()
    boosted = F.cross_entropy(logits_adv, labels) + margin
    divergence = F.kl_div((probabilities_adv + TINY).log(), probabilities, reduction="none").sum(1)
    doubt = 1.0000001 - probabilities.gather(1, column)[:, 0]
    return boosted, (divergence * doubt).mean()


def jensen_shannon(logits_1: Tensor, logits_2: Tensor, temperature: float = 0.5) -> Tensor:
    """Jensen-Shannon divergence of two sharpened predictions (Consistency-AT, Tack et al. 2022, equation 4).

    Args:
        logits_1: (N, C), logits of the first attacked view.
        logits_2: (N, C), logits of the second.
        temperature: T > 0 that divides the logits; below 1 it sharpens.
    """
    first, second = (logits_1 / temperature).softmax(1), (logits_2 / temperature).softmax(1)
    mean = ((first + second) / 2).clamp_min(MEAN_FLOOR).log()
    return (F.kl_div(mean, first, reduction="batchmean") + F.kl_div(mean, second, reduction="batchmean")) / 2


def rebat_kl(logits_adv: Tensor, ema_logits_adv: Tensor) -> Tensor:
    """KL(p_ema(x') || p(x')), the bootstrap regulariser of ReBAT (Wang et al. 2023, equation 6)."""
    return F.kl_div(logits_adv.log_softmax(1), ema_logits_adv.softmax(1), reduction="batchmean")


def rpat_plus_plus_loss(
    logits_adv: Tensor, ema_logits_mix: Tensor, ema_logits_clean: Tensor, rate: float = 0.5
) -> Tensor:
    """Robust perception against the averaged network, which replaces :func:`rebat_kl` in RPAT++ (RPAT 2025).

    ``KL(softmax(z_ema(x_m) - (1 - r) z_ema(x)) || softmax(r z(x')))``; arguments (N, C), ``rate`` as in
    :func:`robust_perception_loss`.
    """
    target = (ema_logits_mix - (1 - rate) * ema_logits_clean).softmax(1)
    return F.kl_div((rate * logits_adv).log_softmax(1), target, reduction="batchmean")
