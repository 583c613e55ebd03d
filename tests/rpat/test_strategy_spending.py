"""Supervised training under a policy counts compute, follows a budget of it, and can be rewarded for the outcome."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import ConfigError
from astra_env.learner.make import make_learner
from astra_env.learner.spending import flops
from astra_env.strategy import AttackStrategy

ATTACK = AttackStrategy.constant(1, 8 / 255, 2, 6 / 255)


def learner(**overrides):
    values = {name.replace("__", "."): value for name, value in overrides.items()}
    return make_learner(load_config(ExperimentConfig, "supervised_tiny", values))


def budgeted(budget, **overrides):
    return learner(learner__total_steps=None, learner__budget=budget, **overrides)


@pytest.mark.parametrize("method", ["pgd_at", "trades", "mart", "consistency"])
@pytest.mark.parametrize("perception", [False, True])
def test_the_count_agrees_with_pytorchs(method, perception):
    arguments = {"method": method, "robust_perception": perception, "network": {"name": "resnet18", "width": 16}}
    found = learner(learner__kind_args=arguments)
    one = flops(found.target, found.images()[:1])
    with FlopCounterMode(display=False) as counter:
        before = found.meter.spent + found.meter.passes
        found.step(ATTACK)
    assert found.meter.spent - before == pytest.approx(counter.get_total_flops() / one, rel=0.02)


def test_a_folded_copy_is_counted_alike():
    plain, folded = learner(), learner(learner__fold_batchnorm=True)
    plain.step(ATTACK)
    folded.step(ATTACK)
    assert folded.compute_spent == pytest.approx(plain.compute_spent)


def test_the_learning_rate_falls_by_the_share_of_the_budget():
    found = budgeted(200.0, learner__kind_args={"optimizer": {"schedule": "cosine"}})
    rates = []
    while not found.finished:
        rates.append(found.learning_rate)
        found.step(ATTACK)
    assert rates[0] == found.config.learner.learning_rate
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.5 * rates[0]
    assert found.compute_spent >= 200


def test_outcome_rewards_add_up_and_continue_from_a_state_bit_for_bit():
    arguments = {"learner__reward": "robust_progress", "learner__reward_args": {"images": 32}}
    found, twin = budgeted(150.0, **arguments), budgeted(150.0, **arguments)
    first = found.reward.measure(found.outcome.held_out)
    found.meter.passes = 0.0  # the measurement above is the test's own
    total = found.step(ATTACK).scalars()["reward"]
    twin.load_state_dict(found.state_dict())
    while not found.finished:
        one, other = found.step(ATTACK), twin.step(ATTACK)
        assert torch.equal(one.reward, other.reward)
        total += one.scalars()["reward"]
    assert twin.finished
    last = found.reward.measure(found.outcome.held_out)
    assert total == pytest.approx(float(last - first), abs=1e-6)
    assert last != first


def test_the_alignment_is_of_the_network_in_training_where_an_average_is_in_use():
    arguments = {"method": "rebat", "ema": {"start_epoch": 0, "decay": 0.5}, "optimizer": {"milestones": [2]}}
    found = learner(
        learner__kind_args={**arguments, "network": {"name": "resnet18", "width": 4}},
        learner__reward="gradient_alignment",
        learner__reward_args={"images": 40, "every": 1},
    )
    rewards = [found.step(ATTACK).reward.item() for _ in range(3)]
    assert found.supervised.average is not None
    assert all(-1 <= reward <= 1 and reward for reward in rewards)


@pytest.mark.parametrize("reward", ["probe_progress", "gradient_alignment"])
def test_every_outcome_rewards_a_classifier(reward):
    found = learner(learner__reward=reward, learner__reward_args={"images": 40, "epsilon": 0.0, "every": 2})
    rewards = [found.step(ATTACK).reward.item() for _ in range(4)]
    assert rewards[0] == rewards[2] == 0
    if reward == "gradient_alignment":
        assert -1 <= rewards[1] <= 1
        assert rewards[1] != rewards[3]


def test_a_budget_that_pays_for_no_step_is_named():
    with pytest.raises(ConfigError, match=r"learner\.budget: expected at least"):
        budgeted(2.0)
