"""Rewards: signs, credit, and the official numbers."""

import pytest
import torch
from random_weights import fill_deterministically

from astra_env.errors import ConfigError
from astra_env.losses import mixed_nt_xent, nt_xent
from astra_env.models import target_resnet18
from astra_env.rewards import REWARDS, RewardInputs, make_reward
from astra_env.strategy import AttackStrategy


def inputs(steps=5, reference=None):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 6, generator=generator)
    clean = images.repeat_interleave(2, dim=0) + 0.1 * torch.randn(8, 6, generator=generator)
    broken = torch.randn(8, 6, generator=generator)
    return RewardInputs(clean, broken, AttackStrategy.constant(8, steps=steps), 0.5, reference)


def test_an_attack_that_pushes_pairs_apart_is_rewarded():
    assert make_reward("astra")(inputs()) > 0.05
    swapped = RewardInputs(inputs().adv_features, inputs().clean_features, inputs().strategy)
    assert make_reward("astra")(swapped) < -0.05


def test_shared_reward_is_the_mean_of_the_per_view_rewards():
    per_view = make_reward("per_view")(inputs())
    assert per_view.shape == (8,)
    assert per_view.std() > 0.01
    torch.testing.assert_close(per_view.mean(), make_reward("astra")(inputs()))


def test_cost_aware_takes_its_price_for_every_step():
    reward = make_reward("cost_aware", {"cost": 0.01})
    torch.testing.assert_close(reward(inputs(steps=5)) - reward(inputs(steps=9)), torch.full((8,), 0.04))
    shared = make_reward("cost_aware", {"cost": 0.01, "credit": "shared"})
    torch.testing.assert_close(shared(inputs(steps=5)), reward(inputs(steps=5)).mean())


def test_versus_fixed_is_zero_against_itself_and_positive_against_nothing():
    reward = make_reward("vs_fixed")
    assert reward(inputs(reference=inputs().adv_features)).item() == pytest.approx(0)
    assert reward(inputs(reference=inputs().clean_features)) > 0.05
    with pytest.raises(ValueError, match="reference_features"):
        reward(inputs())


def test_constant_knows_nothing_of_the_attack():
    assert make_reward("constant")(inputs(1)).item() == make_reward("constant")(inputs(9)).item() == 1.0


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("nonsense", {}, "expected one of astra, constant, cost_aware, gradient_alignment, none, per_view"),
        ("astra", {"colour": 1}, "colour"),
        ("cost_aware", {"credit": "mine"}, "'shared' or 'per_view'"),
        ("missing_module:Reward", {}, "cannot import module 'missing_module'"),
    ],
)
def test_bad_rewards_are_named(name, arguments, message):
    with pytest.raises(ConfigError, match=message):
        make_reward(name, arguments)


def test_a_reward_of_ones_own_is_found_by_module_and_name():
    assert make_reward("astra_env.rewards:Constant", {"value": 2.0})(inputs()).item() == 2.0
    assert {"astra", "per_view", "vs_fixed", "cost_aware", "constant"} <= set(REWARDS)


def test_official_rewards(golden_astra):
    network = fill_deterministically(target_resnet18()).eval()
    with torch.no_grad():
        clean = network(golden_astra["images"], branch="clean")
        adv = network(golden_astra["attack_adv_bn_pgd"], branch="adv")
    given = RewardInputs(clean, adv, AttackStrategy.constant(8))
    paper = make_reward("astra")(given).double()
    torch.testing.assert_close(paper, golden_astra["reward_paper_r1_0"], rtol=1e-4, atol=1e-6)
    mixed = make_reward("astra", {"mixed_weight": 1.0})(given).double()
    torch.testing.assert_close(mixed, golden_astra["reward_r1_1"], rtol=1e-4, atol=1e-6)
    by_hand = (nt_xent(adv) - nt_xent(clean) - mixed_nt_xent(clean, adv)) / 3
    torch.testing.assert_close(mixed, by_hand.double())
