"""What a run does when training goes wrong: it stops or goes back, and says what it sees."""

import logging

import pytest
import torch

import agents
from astra_env.config.reading import load_config, to_yaml
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import Diverged
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.storage.checkpoint import load_checkpoint
from astra_env.storage.run_directory import RunDirectory
from astra_env.training.health import HealthWatch
from astra_env.training.trainer import Trainer
from rpat import Trainer as SupervisedTrainer


def build(path, **overrides):
    small = {"learner.total_steps": 6, "run.checkpoint_every": 2, "probe.enabled": False, "policy": "random"}
    config = load_config(ExperimentConfig, "tiny", {**small, "policy_args": {}, **overrides})
    learner = ContrastiveLearner(config)
    policy = agents.make("random", context=agents.Context(learner.space, seed=config.seed))
    return Trainer(config, learner, policy, RunDirectory(path, to_yaml(config)), progress=False)


def at_step(learner, step, action):
    """Let ``action`` happen before a step of a learner, once."""
    original, done = learner.step, []

    def stepped(*arguments):
        if learner.step_count == step and not done:
            done.append(step)
            action()
        return original(*arguments)

    learner.step = stepped


def spoil(module, value):
    with torch.no_grad():
        next(iter(module.parameters())).fill_(value)


@pytest.mark.parametrize("log_every", [1, 4])
@pytest.mark.parametrize("value", [float("nan"), 1e38])
def test_a_training_that_diverges_stops_before_anything_of_it_is_saved(tmp_path, value, log_every):
    trainer = build(tmp_path, **{"run.log_every": log_every})
    at_step(trainer.learner, 3, lambda: spoil(trainer.learner.target, value))
    with trainer.run, pytest.raises(Diverged, match="diverged"):
        trainer.fit()
    state = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert state["step"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in state["target"].values())


def test_weights_that_overflow_in_an_update_are_not_saved(tmp_path):
    trainer = build(tmp_path, **{"run.on_divergence": "rollback"})
    original = trainer.learner._update

    def overflow(learning_rate):
        original(learning_rate)
        if trainer.learner.step_count == 3 and not trainer.rollbacks:
            spoil(trainer.learner.target, float("inf"))

    trainer.learner._update = overflow
    with trainer.run:
        assert trainer.fit() == 0
    assert trainer.rollbacks == 1


def test_a_rollback_of_a_self_supervised_run_halves_the_learning_rate_and_says_so(tmp_path, caplog):
    trainer = build(tmp_path, **{"run.on_divergence": "rollback"})
    at_step(trainer.learner, 3, lambda: spoil(trainer.learner.target, float("nan")))
    with trainer.run, caplog.at_level(logging.WARNING):
        assert trainer.fit() == 0
        assert [line["step"] for line in trainer.run.metrics()] == list(range(6))
    assert "training diverged at step 3" in caplog.text
    assert "back at step 2, learning rate halved to" in caplog.text
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["learning_rate_scale"] == 0.5


def test_a_run_that_diverges_again_and_again_ends(tmp_path):
    trainer = build(tmp_path, **{"run.on_divergence": "rollback"})
    original = trainer.learner.step

    def always(*arguments):
        spoil(trainer.learner.target, float("nan"))
        return original(*arguments)

    trainer.learner.step = always
    with trainer.run, pytest.raises(Diverged):
        trainer.fit()
    assert trainer.rollbacks == 5


@pytest.mark.parametrize("policy", ["raise", "rollback"])
def test_a_classifier_that_diverges_stops_or_goes_back(tmp_path, caplog, policy):
    trainer = SupervisedTrainer("tiny", {"run.on_divergence": policy, "test.enabled": False})
    at_step(trainer.learner, 1, lambda: spoil(trainer.learner.model, float("nan")))
    with caplog.at_level(logging.WARNING):
        if policy == "raise":
            with pytest.raises(Diverged, match=r"training diverged at step 1: .*run\.on_divergence"):
                trainer.fit(tmp_path / "run")
            assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == 0
            return
        assert trainer.fit(tmp_path / "run")["finished"]
    assert "back at step 0, learning rate halved" in caplog.text
    assert trainer.learner.learning_rate_scale == 0.5
    assert all(torch.isfinite(tensor).all() for tensor in trainer.learner.model.state_dict().values())


def constant(network):
    """Let a network give one output for everything: weights of 0, biases of 1."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.fill_(float(name.endswith("bias")))


def test_an_attack_without_gradients_and_constant_features_are_reported_once(tmp_path, caplog):
    trainer = build(tmp_path)
    at_step(trainer.learner, 0, lambda: constant(trainer.learner.target))
    with trainer.run, caplog.at_level(logging.WARNING):
        trainer.fit()
    assert caplog.text.count("of the attacked images have no gradient, so the attack does not move them") == 1
    assert caplog.text.count("the network gives practically the same output for every image") == 1


def test_a_classifier_that_sees_no_difference_is_reported(tmp_path, caplog):
    trainer = SupervisedTrainer("tiny", {"test.enabled": False})
    at_step(trainer.learner, 0, lambda: constant(trainer.learner.model))
    with caplog.at_level(logging.WARNING):
        trainer.fit(tmp_path / "run")
    assert "have no gradient" in caplog.text


def test_a_healthy_run_is_not_warned_about(tmp_path, caplog):
    trainer = build(tmp_path)
    with trainer.run, caplog.at_level(logging.WARNING):
        trainer.fit()
    assert caplog.text == ""


@pytest.mark.parametrize("scalars", [{"zero_gradient_share": 0.5}, {"uniformity": -0.01}, {"logit_spread": 1e-6}, {}])
def test_what_is_only_unusual_is_not_reported(caplog, scalars):
    HealthWatch().look(0, scalars)
    assert caplog.text == ""
