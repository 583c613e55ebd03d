"""A classifier trained under attacks that somebody else chooses, image by image."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch

from astra_env.attacks import get_norm
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import CheckpointError, ConfigError, Diverged
from astra_env.learner.make import training_images
from astra_env.randomness import generator
from astra_env.rewards import make_reward
from astra_env.storage.checkpoint import encode, save_checkpoint
from astra_env.strategy import AttackStrategy
from rpat.learner import SupervisedLearner
from rpat.under_policy.config import supervised_config
from rpat.under_policy.learner import StrategyLearner
from rpat.under_policy.rewards import REWARDS

KIND = {"learner.kind": "rpat.under_policy.learner:StrategyLearner"}
WEAK = AttackStrategy.constant(1, 8 / 255, 2, 4 / 255)


def make_learner(**overrides):
    return StrategyLearner(load_config(ExperimentConfig, "supervised_tiny", {**KIND, **overrides}))


def weights(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def bits(learner):
    return encode(learner.state_dict())


def mixed_strategy(count=32):
    rows = torch.arange(count)
    return AttackStrategy((1.0 + rows) / 255, rows % 4, torch.full((count,), 2 / 255))


@pytest.mark.parametrize(
    "kind_args",
    [
        {"method": "pgd_at"},
        {"method": "pgd_at", "network.normalize": "data"},
        {"method": "trades", "robust_perception": True},
        {"method": "mart"},
        {"method": "consistency", "augment.autoaugment": "second_half"},
        {"method": "rebat", "robust_perception": True, "ema.start_epoch": 0},
        {"method": "rebat", "ema.start_epoch": 0, "method_args": {"attack_mode": "train"}},
    ],
    ids=lambda arguments: "_".join([arguments["method"], *(name for name in ("method_args",) if name in arguments)]),
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_attack_for_all_images_is_the_training_of_the_supervised_package_bit_for_bit(kind_args, norm):
    overrides = {f"learner.kind_args.{name}": value for name, value in kind_args.items()}
    learner = make_learner(**overrides, **{"learner.norm": norm})
    assert learner.norm == learner.supervised.config.norm == norm
    settings = replace(learner.supervised.config, epsilon="16/255", steps=2, step_size="6/255")
    plain = SupervisedLearner(settings, training_images(learner.config), torch.device("cpu"))
    for _ in range(5):  # four steps are an epoch
        learner.observation()
        report = learner.step(AttackStrategy.constant(1, 16 / 255, 2, 6 / 255))
        terms = plain.step()
        assert report.terms["loss"].item() == terms["loss"].item()
    assert torch.equal(weights(learner.target), weights(plain.model))
    if kind_args["method"] == "rebat":
        assert torch.equal(weights(learner.final_network), weights(plain.average.module))
        assert learner.final_network is not learner.target


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_an_attack_that_is_only_tried_leaves_no_trace_in_either_attack_mode(mode):
    learner = make_learner(
        **{"learner.kind_args.method": "rebat", "learner.kind_args.method_args": {"attack_mode": mode},
           "learner.kind_args.ema.start_epoch": 0}
    )  # fmt: skip
    learner.step(WEAK)
    before = weights(learner.target).clone()
    reward = learner.try_attack(mixed_strategy())
    assert reward.shape == (32,)
    assert torch.equal(weights(learner.target), before)


def test_every_image_stays_in_its_own_ball_and_one_without_steps_keeps_its_start():
    learner = make_learner()
    images, strategy = learner.images(), mixed_strategy()
    start = get_norm("linf").uniform(images, strategy.epsilon.view(-1, 1, 1, 1), generator(0, "attack"))
    adversarial = learner.step(strategy).adversarial
    moved = (adversarial - images).flatten(1).abs().amax(1)
    assert (moved <= strategy.epsilon + 1e-6).all()
    assert (moved > 0).all()
    started = (images + start).clamp(0, 1)
    still = strategy.steps == 0
    assert torch.allclose(adversarial[still], started[still], atol=1e-6)
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(adversarial[~still], started[~still], strict=True))
    assert moved[-1] > 20 / 255 > moved[0]  # its own ball, not the smallest or the mean one


def test_observation_is_the_minibatch_to_come_without_loss_and_the_same_until_the_step():
    learner = make_learner(**{"learner.kind_args.augment.flip": True})
    first = learner.observation()
    assert first.dtype == torch.uint8
    assert first.shape == (learner.views_per_step, 3, 8, 8) == (32, 3, 8, 8)
    assert torch.equal(learner.observation(), first)
    report = learner.step(WEAK)
    assert torch.equal(report.views, first.float() / 255)
    assert not torch.equal(learner.observation(), first)


def test_a_saved_learner_continues_bit_for_bit_whether_or_not_it_was_observed():
    for observed in (False, True):
        learner, other = make_learner(), make_learner()
        learner.step(WEAK)
        if observed:
            learner.observation()
        for _ in range(2):
            other.step(mixed_strategy())
        other.observation()
        other.load_state_dict(copy.deepcopy(learner.state_dict()))
        assert torch.equal(other.observation(), learner.observation())
        for _ in range(3):
            assert torch.equal(learner.step(mixed_strategy()).reward, other.step(mixed_strategy()).reward)
        assert bits(learner) == bits(other)


def test_a_damaged_state_is_refused_and_changes_nothing():
    learner = make_learner()
    learner.step(WEAK)
    observed, before = learner.observation(), bits(learner)
    good = learner.state_dict()
    for name in good:
        if name == "learning_rate_scale":
            continue
        with pytest.raises(CheckpointError, match=name):
            learner.load_state_dict({key: value for key, value in good.items() if key != name})
        wrong = {"weights": torch.full((3,), float("nan"))}
        with pytest.raises(CheckpointError):
            learner.load_state_dict({**copy.deepcopy(good), name: wrong})
        assert bits(learner) == before, name
    assert torch.equal(learner.observation(), observed)


def test_divergence_is_typed_names_the_field_and_leaves_the_weights():
    learner = make_learner(**{"learner.reward": "look_ahead"})
    learner.step(WEAK)
    with torch.no_grad():
        learner.target.linear.bias[0] = float("nan")
    before = weights(learner.target)[:100]
    with pytest.raises(Diverged, match=r"step 1: the loss is nan.*lower learner\.learning_rate \(now 0\.05\)"):
        learner.step(WEAK)
    assert torch.equal(weights(learner.target)[:100], before)
    assert learner.step_count == 1


def test_terms_tell_an_agent_what_the_attack_did():
    learner = make_learner(**{"learner.kind_args.robust_perception": True})
    report = learner.step(AttackStrategy.constant(1, 32 / 255, 3, 16 / 255))
    scalars = report.scalars()
    assert scalars["adv_loss"] - scalars["clean_loss"] == pytest.approx(scalars["reward"], abs=1e-5)
    assert scalars["reward"] > 0
    assert scalars["clean_loss"] / learner.loss_scales["clean_loss"] == pytest.approx(1.0, abs=0.3)
    assert {"mixed_loss", "alignment", "uniformity", "grad_norm", "loss_cross_entropy"} <= scalars.keys()
    assert scalars["alignment"] > 0


def test_bfloat16_keeps_weights_rewards_and_logits_in_float32():
    learner = make_learner(**{"learner.precision": "bf16", "learner.reward": "look_ahead"})
    report = learner.step(WEAK)
    assert report.reward.dtype == torch.float32
    assert torch.isfinite(report.reward)
    assert {parameter.dtype for parameter in learner.target.parameters()} == {torch.float32}


@pytest.mark.parametrize("reward", ["adv_loss_gain", "look_ahead"])
def test_a_folded_attack_trains_the_same_up_to_rounding(reward):
    exact, folded = (
        make_learner(**{"learner.reward": reward, "learner.fold_batchnorm": fold}) for fold in (False, True)
    )
    assert folded.supervised.speed.fold_batchnorm
    for learner in (exact, folded):
        learner.last = learner.step(mixed_strategy()).scalars()
    for name in ("loss", "adv_loss", "reward", "grad_norm"):
        assert folded.last[name] == pytest.approx(exact.last[name], rel=1e-2), name


def test_budget_and_schedule_follow_steps_and_a_new_budget_starts_again():
    learner = make_learner(**{"learner.total_steps": 9, "learner.kind_args.augment.autoaugment": "second_half"})
    rates = []
    while not learner.finished:
        rates.append(learner.learning_rate)
        learner.step(WEAK)
    assert rates == pytest.approx([0.05] * 8 + [0.005])  # four steps an epoch, the rate falls at epoch 2
    late = learner.observation()
    learner.step_count = 0
    assert learner.learning_rate == 0.05
    assert not torch.equal(learner.observation(), late)  # epoch 0 has no AutoAugment
    assert not learner.finished


def test_warm_start_takes_the_weights_alone(tmp_path):
    donor, learner = make_learner(seed=3), make_learner()
    donor.step(WEAK)
    save_checkpoint(tmp_path / "run.pt", donor.state_dict())
    learner.warm_start(tmp_path / "run.pt")
    assert torch.equal(weights(learner.target), weights(donor.target))
    assert learner.step_count == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learner.kind_args.method": "pgd"}, "method: expected one of consistency, mart"),
        ({"learner.kind_args.metod": "trades"}, r"learner\.kind_args\.metod: unknown configuration key; did you mean"),
        ({"learner.kind_args.method_args": {"beta": 2}}, r"method_args\.beta: pgd_at has no such argument"),
        ({"learner.kind_args.epsilon": 0.1}, r"learner\.kind_args\.epsilon: remove it; .* strategy\.epsilon"),
        ({"learner.kind_args.optimizer.learning_rate": 1}, r"the place for it is learner\.learning_rate"),
        ({"learner.kind_args.data.name": "cifar10"}, r"kind_args\.data\.name: remove it; the place for it is data"),
        ({"learner.kind_args.drop_last": False}, r"kind_args\.drop_last: remove it; an environment shows the same"),
        (
            {
                "learner.fold_batchnorm": True,
                "learner.kind_args.method": "rebat",
                "learner.kind_args.method_args": {"attack_mode": "train"},
                "learner.kind_args.ema.start_epoch": 0,
            },
            r"kind_args\.method_args\.attack_mode: rebat attacks the network in training mode",
        ),
        ({"learner.objective": "simclr"}, r"learner\.objective: 'simclr' is contrastive training's"),
        (
            {"learner.reward": "astra"},
            r"learner\.reward: expected one of adv_loss_gain, constant, gradient_alignment",
        ),
        ({"learner.reward_args": {"prize": 1}}, r"learner\.reward_args: .*prize"),
        ({"learner.batch_size": 1}, r"learner\.batch_size: expected an integer >= 2"),
        (
            {"learner.kind_args.method": "rebat", "learner.kind_args.method_args": {"stronger_attack": True}},
            "strengthen its attack during the run, but the policy chooses",
        ),
    ],
)
def test_bad_settings_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_learner(**overrides)


@pytest.mark.parametrize("name", ["supervised_quickstart", "supervised_cifar10"])
def test_presets_describe_a_training_without_a_warning(name):
    config = load_config(ExperimentConfig, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        per_epoch = 50_000 // config.learner.batch_size
        settings = supervised_config(config, config.learner.total_steps or config.learner.epochs * per_epoch, per_epoch)
    assert (settings.method, settings.epochs, settings.batch_size) == (
        "pgd_at",
        config.learner.epochs,
        config.learner.batch_size,
    )
    make_reward(config.learner.reward, config.learner.reward_args, REWARDS)
