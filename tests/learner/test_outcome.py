"""Rewards of the outcome: measured on held-out images, always the same, adding up to what the training reached."""

import pytest
import torch

from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import AstraError, ConfigError
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.learner.outcome import GradientAlignment, ProbeProgress, RobustProgress, ridge
from astra_env.learner.tracking import hold_out
from astra_env.strategy import AttackStrategy

ATTACK = AttackStrategy.constant(1, 8 / 255, 2, 6 / 255)


def learner(reward, arguments=None, **overrides):
    values = {name.replace("__", "."): value for name, value in overrides.items()}
    values |= {"learner.reward": reward, "learner.reward_args": {"images": 32, **(arguments or {})}}
    return ContrastiveLearner(load_config(ExperimentConfig, "tiny", values))


@pytest.mark.parametrize(("reward", "epsilon"), [("robust_progress", "8/255"), ("probe_progress", 0.0)])
def test_undiscounted_rewards_add_up_to_the_last_measure_minus_the_first(reward, epsilon):
    found = learner(reward, {"epsilon": epsilon})
    first = found.reward.measure(found.outcome.held_out)
    total = 0.0
    while not found.finished:
        total += found.step(ATTACK).scalars()["reward"]
    last = found.reward.measure(found.outcome.held_out)
    assert total == pytest.approx(float(last - first), abs=1e-6)
    assert last != first


def test_rewards_come_at_the_end_of_a_stretch_and_of_the_training():
    found = learner("robust_progress", {"every": 5})
    rewards = [found.step(ATTACK).reward.item() for _ in range(12)]
    assert [index for index, value in enumerate(rewards, start=1) if value] == [5, 10, 12]


@pytest.mark.parametrize("reward", ["robust_progress", "probe_progress"])
def test_a_measure_depends_on_the_weights_alone(reward):
    found = learner(reward)
    held_out = found.outcome.held_out
    before = {name: value.clone() for name, value in found.target.state_dict().items()}
    one = found.reward.measure(held_out)
    torch.rand(7)
    assert torch.equal(one, found.reward.measure(held_out))
    assert all(torch.equal(value, before[name]) for name, value in found.target.state_dict().items())
    assert found.target.training


def test_held_out_images_are_not_trained_on():
    found = learner("robust_progress")
    everything = ContrastiveLearner(load_config(ExperimentConfig, "tiny")).dataset
    held, trained = found.outcome.held_out.images, found.dataset
    assert len(held) + len(trained) == len(everything)
    held_bytes = {image.numpy().tobytes() for image in (held * 255).round().to(torch.uint8)}
    assert len(held_bytes) == len(held)
    assert not held_bytes & {image.numpy().tobytes() for image in trained.images}


def test_the_same_images_are_held_out_whatever_the_seed():
    one, other = learner("robust_progress", seed=0), learner("robust_progress", seed=1)
    assert torch.equal(one.outcome.held_out.views, other.outcome.held_out.views)


def test_gradient_alignment_is_high_for_steps_along_the_gradient_and_low_against_it():
    found = learner("gradient_alignment")
    held_out, reward = found.outcome.held_out, found.reward
    before = reward.begin(held_out)
    parameters = list(found.target.parameters())

    def moved(factor):
        with torch.no_grad():
            offset = 0
            for parameter in parameters:
                piece = before["gradient"][offset : offset + parameter.numel()].view_as(parameter)
                parameter.add_(piece, alpha=factor)
                offset += parameter.numel()

    moved(-1e-2)
    assert reward.end(held_out, before)[0] == pytest.approx(1.0, abs=1e-3)
    moved(2e-2)
    assert reward.end(held_out, before)[0] == pytest.approx(-1.0, abs=1e-3)


def test_the_gradient_points_where_the_held_out_loss_falls():
    found = learner("gradient_alignment")
    held_out, reward = found.outcome.held_out, found.reward
    direction = reward.begin(held_out)["gradient"]
    loss = held_out.robust_loss(reward)
    with torch.no_grad():
        offset = 0
        for parameter in found.target.parameters():
            piece = direction[offset : offset + parameter.numel()].view_as(parameter)
            parameter.sub_(piece, alpha=0.05 / direction.norm())
            offset += parameter.numel()
    assert held_out.robust_loss(reward) < loss


def test_ridge_separates_what_a_line_separates():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    features = torch.eye(3)[labels] + 0.1 * torch.randn(60, 3, generator=generator)
    assert torch.equal(ridge(features, labels, 3)(features).argmax(1), labels)


def test_a_measurement_costs_at_most_a_tenth_by_default():
    config = load_config(ExperimentConfig, "quickstart", {"learner.reward": "robust_progress"})
    found = ContrastiveLearner(config)
    held_out = found.outcome.held_out
    found.meter.passes = 0.0
    found.reward.measure(held_out)
    cheapest = 9 * found.views_per_step * config.env.chunk_steps  # one step of attack and the training
    assert found.meter.passes <= 0.1 * cheapest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": 4000}, "learner.reward_args.images: 4000 images are to be held out of the 12"),
        ({"images": 1}, "learner.reward_args.images"),
        ({"epsilon": 8}, "learner.reward_args.epsilon.*8/255"),
        ({"steps": -1}, "learner.reward_args.steps"),
        ({"every": 0}, "learner.reward_args.every"),
        ({"step_size": "many"}, "learner.reward_args.step_size"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        learner("robust_progress", arguments)


def test_a_reference_attack_may_be_longer_than_one_in_l2():
    found = learner(
        "robust_progress", {"epsilon": 2.0}, learner__norm="l2", strategy__epsilon=[1.5], strategy__step_size=[0.5]
    )
    assert found.reward.attack("l2").epsilon == 2.0


def test_the_alignment_is_of_the_network_in_training_where_a_momentum_encoder_is_in_use():
    found = learner("gradient_alignment", {"every": 1}, learner__objective="dynacl")
    assert -1 <= found.step(ATTACK).reward.item() <= 1


def test_labels_are_asked_for_before_the_first_step():
    config = load_config(
        ExperimentConfig, "tiny", {"learner.reward": "probe_progress", "learner.reward_args.images": 32}
    )
    dataset = ContrastiveLearner(load_config(ExperimentConfig, "tiny")).dataset
    dataset.labels.fill_(-1)
    with pytest.raises(ConfigError, match="probe_progress needs labelled images"):
        ContrastiveLearner(config, dataset)


def test_an_attack_cannot_be_tried_for_an_outcome():
    with pytest.raises(AstraError, match="measured by training"):
        learner("robust_progress").try_attack(ATTACK)


def test_unlabelled_images_can_be_held_out():
    dataset = ContrastiveLearner(load_config(ExperimentConfig, "tiny")).dataset
    dataset.labels.fill_(-1)
    kept, held = hold_out(dataset, 40)
    assert (len(kept), len(held)) == (len(dataset) - 40, 40)


@pytest.mark.parametrize("reward", [RobustProgress, ProbeProgress, GradientAlignment])
def test_the_reference_attack_reaches_the_edge_of_its_ball(reward):
    attack = reward().attack("linf")
    assert attack.steps * attack.step_size >= attack.epsilon
