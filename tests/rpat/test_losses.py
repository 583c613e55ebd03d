"""The losses against the official numbers, a float64 re-derivation and their limits."""

import math

import pytest
import torch
import torch.nn.functional as F

from rpat.losses import (
    jensen_shannon,
    mart_loss,
    rebat_kl,
    robust_perception_loss,
    rpat_plus_plus_loss,
    trades_kl,
)


def logits(seed, rows=6, classes=4):
    source = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, classes, generator=source, dtype=torch.float64)


def kl(p, q):
    return (p * (p / q).log()).sum(1).mean()


def test_official_values(golden_rpat):
    adv, clean, mix = (golden_rpat[f"logits_{name}"] for name in ("adv", "benign", "mix"))
    bce, weighted = mart_loss(adv, clean, golden_rpat["labels"])
    values = {
        "rp_mse_rate_0.5": robust_perception_loss(mix, clean, adv, 0.5),
        "rp_mse_rate_0.3": robust_perception_loss(mix, clean, adv, 0.3),
        "trades_kl": trades_kl(adv, clean),
        "consistency_jsd_T0.5": jensen_shannon(adv, clean, 0.5),
        "mart_bce": bce,
        "mart_weighted_kl_beta6": 6 * weighted,
        "rebat_kl": rebat_kl(adv, clean),
        "rpatpp_kl": rpat_plus_plus_loss(adv, mix, clean, 0.5),
    }
    for name, value in values.items():
        assert float(value) == pytest.approx(float(golden_rpat[name]), rel=1e-4), name


def test_robust_perception_vanishes_exactly_on_a_straight_path_and_weighs_the_clean_side_by_the_rate():
    clean, adv = logits(0), logits(1)
    assert float(robust_perception_loss(0.3 * clean + 0.7 * adv, clean, adv, 0.3)) == 0
    distance = robust_perception_loss(clean, clean, adv, 0.25)
    assert distance.item() == pytest.approx(0.75**2 * (clean - adv).square().mean().item())


def test_robust_perception_sends_gradient_to_all_three_logits():
    mix, clean, adv = (logits(seed).requires_grad_() for seed in range(3))
    gradients = torch.autograd.grad(robust_perception_loss(mix, clean, adv), (mix, clean, adv))
    assert torch.allclose(gradients[1], -0.5 * gradients[0])
    assert torch.allclose(gradients[2], -0.5 * gradients[0])


def test_trades_divergence_is_from_clean_to_adversarial():
    adv, clean = logits(0), logits(1)
    assert float(trades_kl(adv, clean)) == pytest.approx(float(kl(clean.softmax(1), adv.softmax(1))))
    assert float(trades_kl(adv, clean)) != pytest.approx(float(trades_kl(clean, adv)))
    clean.requires_grad_()
    assert torch.autograd.grad(trades_kl(adv, clean), clean)[0].abs().sum() > 0


def test_mart_follows_its_two_equations_where_the_likeliest_class_is_right_and_where_it_is_wrong():
    adv, clean = logits(0), logits(1)
    labels = adv.argmax(1).clone()
    labels[::2] = (labels[::2] + 1) % 4
    p_adv, p = adv.softmax(1), clean.softmax(1)
    others = p_adv.clone()
    others[torch.arange(6), labels] = -1
    expected_bce = F.cross_entropy(adv, labels) - (1.0001 - others.amax(1) + 1e-12).log().mean()
    doubt = 1 - p[torch.arange(6), labels]
    expected_kl = ((p * (p / p_adv).log()).sum(1) * doubt).mean()
    bce, weighted = mart_loss(adv, clean, labels)
    assert float(bce) == pytest.approx(float(expected_bce), rel=1e-9)
    assert float(weighted) == pytest.approx(float(expected_kl), rel=1e-5)


def test_jensen_shannon_is_symmetric_and_at_most_log_two():
    first, second = logits(0), logits(1)
    assert float(jensen_shannon(first, second)) == pytest.approx(float(jensen_shannon(second, first)))
    opposite = torch.tensor([[50.0, -50.0]], dtype=torch.float64)
    assert float(jensen_shannon(opposite, -opposite)) == pytest.approx(math.log(2), abs=1e-6)
    assert float(jensen_shannon(opposite, opposite)) == pytest.approx(0, abs=1e-7)


def test_jensen_shannon_divides_logits_by_the_temperature():
    first, second = logits(0), logits(1)
    assert float(jensen_shannon(first, second, 0.5)) == pytest.approx(float(jensen_shannon(2 * first, 2 * second, 1)))


def test_rpat_plus_plus_is_zero_when_perception_moves_straight_and_equals_rebat_at_rate_one():
    clean, adv = logits(0), logits(1)
    assert float(rpat_plus_plus_loss(adv, 0.5 * clean + 0.5 * adv, clean)) == pytest.approx(0, abs=1e-9)
    assert float(rpat_plus_plus_loss(adv, clean, logits(3), 1.0)) == pytest.approx(float(rebat_kl(adv, clean)))
