"""``learner.norm``: the ball that attacks of training, rewards, environments and the measurement at the end stay in."""

import gymnasium as gym
import pytest
import torch
import yaml

import astra_env  # noqa: F401
from astra_env.attacks.norms import L2
from astra_env.config.reading import load_config, to_dict
from astra_env.config.run_configuration import config_of_run
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import ConfigError, InputError
from astra_env.evaluation import probe_learner, robust_accuracy
from astra_env.evaluation.probes import linear
from astra_env.learner.make import make_learner
from astra_env.rewards import make_reward
from astra_env.strategy import Attack, AttackStrategy

GRIDS = {"strategy.epsilon": [0.5, 1.5, "600/255"], "strategy.steps": [0, 1, 3], "strategy.step_size": [0.25, 1.25]}


class HalfBall(L2):
    """A user's norm: balls of half the radius."""

    def project(self, delta, epsilon):
        return super().project(delta, epsilon / 2)


def learner_of(**overrides):
    return make_learner(load_config(ExperimentConfig, "tiny", {"learner.norm": "l2", **GRIDS, **overrides}))


def lengths(report):
    return (report.adversarial - report.views).flatten(1).norm(dim=1)


def mixed(learner):
    count = learner.views_per_step
    actions = torch.stack([torch.arange(count) % size for size in learner.space.sizes], dim=1)
    return learner.space.decode(actions)


def test_each_view_moves_within_the_l2_ball_of_its_own_epsilon():
    learner = learner_of()
    strategy = mixed(learner)
    for _ in range(2):
        report = learner.step(strategy)
        assert (lengths(report) <= strategy.epsilon + 1e-4).all()
        moved = strategy.steps == 3
        assert (lengths(report)[moved] > 0.5 * strategy.epsilon[moved].clamp(max=0.75)).all()
        # Beyond every l-inf ball of the published grid: the gradient is not spread evenly over the pixels.
        assert (report.adversarial - report.views).abs().amax() > 15 / 255
        assert report.scalars()["loss"] > 0


def test_the_l2_attack_starts_in_the_ball_of_each_view_and_the_linf_one_in_the_published_box():
    count = learner_of().views_per_step
    epsilon = torch.linspace(0, 2, count)
    nothing = AttackStrategy(epsilon, torch.zeros(count, dtype=torch.int64), epsilon)
    start = lengths(learner_of().step(nothing))
    assert (start <= epsilon + 1e-5).all()
    # In thousands of dimensions nearly all of a ball lies at its edge; the image box then cuts some of it off.
    assert (start[1:] > 0.4 * epsilon[1:]).all()
    wide = AttackStrategy(torch.full((count,), 1.0), torch.zeros(count, dtype=torch.int64), epsilon)
    report = learner_of(**{"learner.norm": "linf", "strategy.epsilon": [1.0], "strategy.step_size": [0.1]}).step(wide)
    assert (report.adversarial - report.views).abs().amax() <= 8 / 255 + 1e-6


def test_lengths_beyond_one_are_for_other_norms_than_linf():
    assert learner_of().space.epsilon[-1] == pytest.approx(600 / 255)
    with pytest.raises(InputError, match=r"strategy\.epsilon: expected a number in \[0, 1\] pixel units, got 1\.5"):
        learner_of(**{"learner.norm": "linf"})
    with pytest.raises(InputError, match=r"strategy\.step_size: expected a finite l2 length >= 0"):
        learner_of(**{"strategy.step_size": [-0.5]})


@pytest.mark.parametrize("kind", ["contrastive", "supervised"])
def test_an_unknown_norm_is_told_in_one_line(kind):
    with pytest.raises(ConfigError, match="norm: expected one of l2, linf or 'module:attribute', got 'l1'"):
        learner_of(**{"learner.norm": "l1", "learner.kind": kind, "learner.reward": "constant"})


def test_a_norm_of_ones_own_is_imported():
    learner = learner_of(**{"learner.norm": f"{__name__}:HalfBall"})
    strategy = AttackStrategy.constant(1, 1.0, 3, 1.0).for_each(learner.views_per_step, "cpu")
    assert (lengths(learner.step(strategy)) <= 0.5 + 1e-4).all()


def test_a_reward_against_a_fixed_attack_measures_it_in_the_norm_of_training():
    reward = make_reward("vs_fixed", {"epsilon": "400/255", "steps": 2, "step_size": 1.2}, norm="l2")
    assert reward.attack == Attack(400 / 255, 1.2, 2, "l2")
    with pytest.raises(ConfigError, match=r"^learner\.reward_args\.epsilon: expected a number in \[0, 1\] pixel units"):
        make_reward("vs_fixed", {"epsilon": "400/255"})
    with pytest.raises(ConfigError, match=r"^learner\.reward_args\.steps: expected an integer >= 0, got -1"):
        make_reward("vs_fixed", {"steps": -1})
    learner = learner_of(**{"learner.reward": "vs_fixed", "learner.reward_args": {"epsilon": 2, "step_size": 1}})
    weak = learner.try_attack(AttackStrategy.constant(1, 0.01, 1, 0.01))
    assert weak < 0  # the fixed attack, of length 2, does more


def test_the_probe_measures_in_the_norm_of_training(monkeypatch):
    attacks = []

    def seen(model, images, attack, **options):
        attacks.append(attack)
        return robust_accuracy(model, images, attack, **options)

    monkeypatch.setattr(linear, "robust_accuracy", seen)
    learner = learner_of(**{"probe.epsilon": [2.0], "probe.steps": 2, "probe.epochs": 1, "probe.max_test_images": 20})
    result = probe_learner(learner, learner.config)
    assert attacks == [Attack(2.0, 2.5, 2, "l2")]
    assert result.robust[2.0].total == 20


@pytest.mark.parametrize("name", ["AttackStrategy", "InstanceAttackStrategy"])
def test_environments_attack_in_l2(name):
    overrides = {"learner.norm": "l2", **GRIDS}
    if name == "AttackStrategy":
        env = gym.make("astra_env/AttackStrategy-v0", config="tiny", overrides=overrides)
    else:
        env = gym.make_vec("astra_env/InstanceAttackStrategy-v0", config="tiny", overrides=overrides, num_envs=8)
    env.reset(seed=0)
    env.action_space.seed(0)
    _, reward, *_ = env.step(env.action_space.sample())
    assert torch.as_tensor(reward).isfinite().all()
    learner = getattr(env.unwrapped, "learner", None)
    assert learner is None or learner.norm == "l2"
    env.close()


def test_the_old_place_of_the_norm_is_refused_and_read_from_old_run_directories(tmp_path):
    with pytest.raises(ConfigError, match=r"^learner\.kind_args\.norm: remove it; the place for it is learner\.norm"):
        make_learner(load_config(ExperimentConfig, "supervised_tiny", {"learner.kind_args.norm": "l2"}))
    values = to_dict(load_config(ExperimentConfig, "supervised_tiny"))
    del values["learner"]["norm"]
    values["learner"]["kind_args"]["norm"] = "l2"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    learner = make_learner(config_of_run(ExperimentConfig, tmp_path))
    assert learner.norm == learner.supervised.config.norm == learner.config.learner.norm == "l2"
