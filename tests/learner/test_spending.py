"""What a training spends is counted, agrees with PyTorch's own count, and ends the training."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import agents
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import AstraError, ConfigError
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.learner.make import make_learner
from astra_env.learner.protocol import interact
from astra_env.learner.spending import charge_policy, flops
from astra_env.optim import half_cosine
from astra_env.strategy import AttackStrategy

FIVE_STEPS = AttackStrategy.constant(1, 8 / 255, 5, 2 / 255)


def learner(**overrides):
    values = {name.replace("__", "."): value for name, value in overrides.items()}
    config = load_config(ExperimentConfig, "tiny", values)
    return make_learner(config)


def budgeted(budget, **overrides):
    return learner(learner__total_steps=None, learner__budget=budget, **overrides)


@pytest.mark.parametrize(
    ("objective", "reward", "cost"),
    [
        # 6 for training, 2 a step of the attack, 1 for its final features, 1 for the clean ones of the reward
        ("astra", "per_view", 6 + 2 * 5 + 1 + 1),
        ("acl", "per_view", 6 + 2 * 5 + 1 + 1),
        ("simclr", "per_view", 3),
        # another attack of 5 steps and its features
        ("astra", "vs_fixed", 6 + 2 * 5 + 1 + 1 + 2 * 5 + 1),
    ],
)
def test_a_step_costs_what_its_passes_cost(objective, reward, cost):
    found = learner(learner__objective=objective, learner__reward=reward)
    found.step(FIVE_STEPS)
    assert found.compute_spent == pytest.approx(cost)


@pytest.mark.parametrize(
    ("objective", "folded"),
    [("astra", False), ("astra", True), ("rocl", False), ("dynacl", False), ("advcl", False), ("deacl", False)],
)
def test_the_count_agrees_with_pytorchs(objective, folded):
    """Within 2 %; a network of width 16, whose first layer, which needs no gradient of its input, weighs little."""
    overrides = {
        "learner.objective": objective, "target.width": 16, "target.head": "mlp3",
        "learner.fold_batchnorm": folded,
        "learner.objective_args": {"teacher_steps": 1} if objective == "deacl" else {},
    }  # fmt: skip
    config = load_config(ExperimentConfig, "tiny", overrides)
    found = ContrastiveLearner(config)
    while found.left_to_prepare:
        found.prepare()
    one = flops(found.target, found.views()[:1])
    found.meter.passes = found.meter.spent = 0.0
    with FlopCounterMode(display=False) as counter:
        found.step(FIVE_STEPS)
    counted = counter.get_total_flops() / one
    assert found.meter.spent == pytest.approx(counted, rel=0.02)


def test_a_policy_pays_for_its_own_passes():
    found = learner(learner__reward="constant")
    policy = agents.make("reinforce", context=agents.Context(found.space), width=4)
    charge_policy(found.meter, policy, found.target, 8, found.device)
    report = interact(found, policy)
    alone = learner(learner__reward="constant")
    alone.step(report.strategy)
    weight = flops(policy.network, torch.zeros(1, 3, 8, 8)) / flops(found.target, torch.zeros(1, 3, 8, 8))
    # one pass to act; the three to learn come after the step and are settled with the next one
    assert found.compute_spent - alone.compute_spent == pytest.approx(weight, rel=0.02)
    assert found.meter.passes / found.views_per_step == pytest.approx(3 * weight, rel=0.02)


def test_progress_learning_rate_and_end_follow_the_budget():
    found = budgeted(100.0, learner__reward="per_view")
    spent = []
    while not found.finished:
        expected = found.config.learner.learning_rate * half_cosine(
            found.compute_spent / 100, found.config.learner.final_learning_rate / found.config.learner.learning_rate
        )
        assert found.learning_rate == pytest.approx(expected)
        found.step(FIVE_STEPS)
        spent.append(found.compute_spent)
        assert found.progress == pytest.approx(spent[-1] / 100)
    assert spent == [18.0 * step for step in range(1, 7)]  # the first multiple that reaches 100


def test_a_cheaper_attack_trains_longer_on_the_same_budget():
    def steps(strategy):
        found = budgeted(120.0, learner__reward="constant", strategy__steps=[0, 1, 5])
        while not found.finished:
            found.step(strategy)
        assert 120 <= found.compute_spent < 120 + 18
        return found.step_count

    assert steps(AttackStrategy.constant(1, 8 / 255, 1, 8 / 255)) > steps(FIVE_STEPS)


def test_no_steps_are_a_clean_step_without_an_attacks_price():
    found = learner(strategy__steps=[0, 1, 2], learner__reward="robust_progress", learner__reward_args={"images": 32})
    found.outcome.before_step()
    found.meter.passes = 0.0
    report = found.step(AttackStrategy.constant(1, 8 / 255, 0, 8 / 255))
    torch.testing.assert_close(report.adversarial, report.views, atol=1e-7, rtol=0)
    assert found.compute_spent == pytest.approx(6.0)


@pytest.mark.parametrize("reward", ["per_view", "robust_progress"])
def test_a_state_taken_mid_stretch_continues_bit_for_bit(reward):
    arguments = {"learner__reward": reward, "learner__reward_args": {"images": 32} if reward != "per_view" else {}}
    found, twin = budgeted(200.0, **arguments), budgeted(200.0, **arguments)
    for _ in range(3):  # a stretch has two steps
        found.step(FIVE_STEPS)
    twin.load_state_dict(found.state_dict())
    assert twin.compute_spent == found.compute_spent
    while not found.finished:
        one, other = found.step(FIVE_STEPS), twin.step(FIVE_STEPS)
        assert torch.equal(one.reward, other.reward)
        assert found.compute_spent == twin.compute_spent
    assert twin.finished
    for mine, theirs in zip(found.target.parameters(), twin.target.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learner.budget": 100.0}, "learner.budget: 100 F beside learner.total_steps 12"),
        ({"learner.budget": 3.0, "learner.total_steps": None}, "learner.budget: expected at least the 8 F"),
        ({"learner.budget": -3.0, "learner.total_steps": None}, "learner.budget"),
        ({"learner.budget": math.nan, "learner.total_steps": None}, "learner.budget"),
        ({"strategy.step_size_unit": "metres"}, "strategy.step_size_unit"),
    ],
)
def test_bad_budgets_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_learner(load_config(ExperimentConfig, "tiny", overrides))


@pytest.mark.parametrize("passes", [-1.0, math.nan, "much"])
def test_a_hostile_count_is_refused(passes):
    found = budgeted(100.0)
    with pytest.raises(AstraError, match="compute"):
        found.load_state_dict({**found.state_dict(), "compute": {"passes": passes, "spent": 0.0}})
