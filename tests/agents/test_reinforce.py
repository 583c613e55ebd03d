"""REINFORCE: the official loss and gradient, what each preset does, and that it learns."""

import numpy as np
import pytest
import torch
from random_weights import fill_deterministically

import agents
from agents.reinforce import entropy, log_probabilities, reinforce_loss
from astra_env.errors import ConfigError, InputError
from astra_env.models import strategy_resnet18
from astra_env.strategy import StrategySpace

HEADS = ("epsilon", "iterations", "step_size")


def views(count=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)


def small(preset="improved", **kwargs):
    return agents.make("reinforce", preset=preset, width=4, blocks=(1, 1), **kwargs)


def test_official_loss_and_gradient(golden_astra):
    logits = [golden_astra[f"reinforce_logits_{head}"].clone().requires_grad_() for head in HEADS]
    actions = torch.stack([golden_astra[f"reinforce_actions_{head}"] for head in HEADS], dim=1)
    loss = reinforce_loss(logits, actions, golden_astra["reinforce_reward"].float())
    torch.testing.assert_close(loss.double(), golden_astra["reinforce_loss"], rtol=1e-4, atol=0)
    loss.backward()
    for head, mine in zip(HEADS, logits, strict=True):
        torch.testing.assert_close(mine.grad, golden_astra[f"reinforce_grad_{head}"], rtol=1e-4, atol=1e-6)


def test_official_strategy_logits_decide_the_deterministic_actions(golden_astra):
    policy = agents.make("reinforce", preset="paper")
    fill_deterministically(policy.network)
    assert policy.network.state_dict().keys() == strategy_resnet18().state_dict().keys()
    observation = (golden_astra["images"] * 255).round().to(torch.uint8)
    actions, _ = policy.predict(observation, deterministic=True)
    policy.network.eval()
    with torch.no_grad():
        logits = policy.network(observation.float() / 255)
    assert torch.equal(actions, torch.stack([head.argmax(1) for head in logits], dim=1))


def test_loss_by_hand():
    logits = [torch.zeros(2, 4), torch.zeros(2, 2), torch.log(torch.tensor([[0.1, 0.9], [0.5, 0.5]]))]
    actions = torch.tensor([[0, 1, 1], [3, 0, 0]])
    log_pi = [np.log(1 / 4) + np.log(1 / 2) + np.log(0.9), np.log(1 / 4) + np.log(1 / 2) + np.log(0.5)]
    assert log_probabilities(logits, actions).tolist() == pytest.approx(log_pi)
    assert reinforce_loss(logits, actions, 2.0).item() == pytest.approx(-2 * sum(log_pi))
    per_view = reinforce_loss(logits, actions, torch.tensor([1.0, -3.0]))
    assert per_view.item() == pytest.approx(-(log_pi[0] - 3 * log_pi[1]))
    assert entropy(logits[:2]).item() == pytest.approx(np.log(4) + np.log(2))


def test_improved_starts_from_uniform_choices():
    policy = small()
    with torch.no_grad():
        logits = policy.network(views().float() / 255)
    assert all(head.abs().max() == 0 for head in logits)


def test_arrays_in_arrays_out_and_tensors_in_tensors_out_agree():
    tensor_actions, _ = small(seed=3).predict(views())
    array_actions, _ = small(seed=3).predict(views().numpy())
    assert isinstance(array_actions, np.ndarray)
    assert np.array_equal(tensor_actions.numpy(), array_actions)
    assert array_actions.shape == (16, 3)
    single, _ = small(seed=3).predict(views().numpy()[0])
    assert single.shape == (3,)
    StrategySpace().decode(array_actions)


@pytest.mark.parametrize(("preset", "updates"), [("paper", 1), ("improved", 10)])
def test_update_period_of_the_presets(preset, updates):
    policy = small(preset, total_steps=1000)
    reports = [one_step(policy) for _ in range(10)]
    assert sum(map(bool, reports)) == policy.updates == updates
    assert reports[-1]  # the tenth step is one of those


def one_step(policy, reward=0.5):
    """Do what a training step does with a policy; returns what its update reported."""
    tried = policy.rehearse(views())
    report = {} if tried is None else policy.learn_from(views(), tried, torch.tensor(reward))
    return {**report, **policy.learn_from(views(), policy.predict(views())[0], torch.tensor(reward))}


def test_published_policy_acts_from_the_network_that_it_has_just_updated():
    policy = small("paper", update_every=1, optimizer="adam", learning_rate=0.1)
    before = [value.clone() for value in policy.network.parameters()]
    tried = policy.rehearse(views())
    assert policy.network.training
    policy.learn_from(views(), tried, torch.tensor(1.0))
    assert any(not torch.equal(old, new) for old, new in zip(before, policy.network.parameters(), strict=True))
    policy.predict(views())
    assert not policy.network.training


def test_published_policy_differentiates_the_distribution_that_it_sampled_from():
    policy = small("paper", update_every=1)
    policy.network.train()
    with torch.no_grad():
        expected = [head.log_softmax(1) for head in policy.network(views().float() / 255)]
    actions = policy.rehearse(views())
    report = policy.learn_from(views(), actions, torch.tensor(2.0))
    log_pi = sum(head.gather(1, actions[:, [k]]).sum() for k, head in enumerate(expected))
    assert report["loss"].item() == pytest.approx(-2 * log_pi.item(), rel=1e-5)


def test_improved_has_nothing_to_rehearse_because_its_network_decides_alike_in_both_modes():
    policy = small()
    assert policy.rehearse(views()) is None
    torch.nn.init.normal_(policy.network.heads[0].weight)
    pixels = views().float() / 255
    for mine, theirs in zip(policy.network.train()(pixels), policy.network.eval()(pixels), strict=True):
        assert torch.equal(mine, theirs)


def test_learning_without_a_rehearsal_is_refused_where_one_is_needed():
    policy = small("paper", update_every=1)
    with pytest.raises(InputError, match="rehearse"):
        policy.learn_from(views(), policy.predict(views())[0], torch.tensor(0.5))


def bandit_share(policy, reward_of, rounds, target):
    for round_ in range(rounds):
        observation = views(32, round_)
        actions, _ = policy.predict(observation)
        policy.learn_from(observation, actions, reward_of(actions))
    actions, _ = policy.predict(views(256, 10_000))
    return (actions[:, 0] == target).float().mean().item()


def test_improved_finds_the_rewarded_choice_of_each_view():
    policy = small(space=StrategySpace(epsilon=[0.1, 0.2, 0.3], steps=[1, 2], step_size=[0.1]), learning_rate=0.01)
    assert bandit_share(policy, lambda actions: (actions[:, 0] == 2).float(), 60, 2) > 0.8


def test_improved_learns_from_a_shared_reward_through_its_running_baseline():
    space = StrategySpace(epsilon=[0.1, 0.2], steps=[1], step_size=[0.1])
    policy = small(space=space, learning_rate=0.01, entropy=0.0)
    share = bandit_share(policy, lambda actions: (actions[:, 0] == 1).float().mean(), 80, 1)
    assert share > 0.7


def test_entropy_bonus_keeps_choices_spread():
    space = StrategySpace(epsilon=[0.1, 0.2, 0.3], steps=[1, 2], step_size=[0.1])
    shares = [
        bandit_share(small(space=space, learning_rate=0.01, entropy=bonus), lambda a: (a[:, 0] == 2).float(), 40, 2)
        for bonus in (0.0, 10.0)
    ]
    assert shares[1] < 0.6 < shares[0]


def test_state_dict_continues_bit_for_bit():
    policy, other = small(), small(seed=5)
    for _ in range(2):
        policy.learn_from(views(), policy.predict(views())[0], torch.linspace(1, 0, 16))
    other.load_state_dict(policy.state_dict())
    assert torch.equal(policy.predict(views())[0], other.predict(views())[0])
    reward = torch.linspace(0, 1, 16)
    actions = policy.predict(views())[0]
    other.predict(views())
    policy.learn_from(views(), actions, reward)
    other.learn_from(views(), actions, reward)
    for mine, theirs in zip(policy.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"preset": "best"}, "policy_args.preset: expected one of paper, improved"),
        ({"learning_rte": 1}, "policy_args.learning_rte: unknown argument"),
        ({"optimizer": "sgd"}, "policy_args.optimizer"),
        ({"update_every": 0}, "policy_args.update_every"),
        ({"baseline": "critic"}, "policy_args.baseline"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        agents.make("reinforce", **kwargs)


def test_vector_observations_are_refused_with_a_hint():
    with pytest.raises(InputError, match="InstanceAttackStrategy-v0"):
        small().predict(np.zeros((4, 17), dtype=np.float32))
