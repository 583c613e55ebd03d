"""NT-Xent and its relatives against closed forms, a float64 re-derivation and the official numbers."""

import math

import pytest
import torch

from astra_env.errors import InputError
from astra_env.losses import alignment, interleave, mixed_nt_xent, nt_xent, uniformity


def nt_xent_by_hand(features: torch.Tensor, temperature: float) -> torch.Tensor:
    rows = []
    for i in range(len(features)):
        scores = [
            torch.dot(features[i], features[j]) / (features[i].norm() * features[j].norm()) / temperature
            for j in range(len(features))
        ]
        others = sum(scores[j].exp() for j in range(len(features)) if j != i)
        rows.append(-(scores[i ^ 1].exp() / others).log())
    return torch.stack(rows)


def test_nt_xent_equals_a_float64_loop_for_every_row():
    features = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = nt_xent_by_hand(features, 0.3)
    torch.testing.assert_close(nt_xent(features, 0.3, "none"), expected)
    torch.testing.assert_close(nt_xent(features, 0.3), expected.mean())
    torch.testing.assert_close(nt_xent(features, 0.3, "sum"), expected.sum())


def test_nt_xent_of_identical_rows_is_log_of_the_number_of_others():
    assert nt_xent(torch.ones(6, 4)).item() == pytest.approx(math.log(5))


def test_mixed_loss_pairs_each_view_with_its_own_attack():
    clean, adv = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    matched = mixed_nt_xent(clean, adv)
    shuffled = mixed_nt_xent(clean, adv[[1, 2, 3, 0]])
    assert matched < shuffled
    torch.testing.assert_close(matched, nt_xent_by_hand(interleave(clean, adv), 0.5).mean())


def test_alignment_and_uniformity_have_their_closed_forms():
    opposite = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert alignment(opposite, -3 * opposite).item() == pytest.approx(4.0)
    assert uniformity(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])).item() == pytest.approx(-8.0)


@pytest.mark.parametrize("shape", [(3, 4), (2, 4), (8,)])
def test_nt_xent_refuses_features_that_are_not_pairs(shape):
    with pytest.raises(InputError, match="expected features"):
        nt_xent(torch.zeros(shape))


def test_official_losses(golden_astra):
    clean, adv = golden_astra["features_clean"], golden_astra["features_adv"]
    mixed = mixed_nt_xent(clean, adv)
    torch.testing.assert_close(nt_xent(clean).double(), golden_astra["nt_xent_clean"], rtol=1e-4, atol=0)
    torch.testing.assert_close(nt_xent(adv).double(), golden_astra["nt_xent_adv"], rtol=1e-4, atol=0)
    torch.testing.assert_close(mixed.double(), golden_astra["nt_xent_mixed"], rtol=1e-4, atol=0)
    total = (nt_xent(clean) + nt_xent(adv)) / 2 + 0.5 * mixed
    torch.testing.assert_close(total.double(), golden_astra["loss_total_simweight_0.5"], rtol=1e-4, atol=0)
