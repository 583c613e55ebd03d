"""The trainer: what a run writes, exact resumption, rollback, stopping on a signal."""

import json
import os
import signal

import pytest
import torch

import agents
from astra_env.config.reading import load_config, to_yaml
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import CheckpointError, Diverged
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.storage.run_directory import RunDirectory
from astra_env.training.trainer import Trainer


def build(path, resume=False, agent=None, **overrides):
    small = {"learner.total_steps": 7, "run.checkpoint_every": 3, "probe.enabled": False}
    config = load_config(ExperimentConfig, "tiny", {**small, **overrides})
    learner = ContrastiveLearner(config)
    context = agents.Context(learner.space, learner.device, config.seed, learner.total_steps)
    agent = agent or agents.make(config.policy, context=context, **config.policy_args)
    return Trainer(config, learner, agent, RunDirectory(path, to_yaml(config), resume=resume), progress=False)


def digest(directory):
    state = torch.load(directory / "checkpoints" / "last.pt", weights_only=True)
    weights = torch.cat([tensor.double().flatten() for tensor in state["target"].values()])
    strategy = state["policy"].get("strategy", {})
    return weights, [tensor.double() for tensor in strategy.values()], (directory / "metrics.jsonl").read_text()


def same(first, second):
    weights, strategy, metrics = first
    return (
        torch.equal(weights, second[0])
        and all(torch.equal(a, b) for a, b in zip(strategy, second[1], strict=True))
        and metrics == second[2]
    )


class StopsAt:
    """A policy that behaves like another until it raises, as if the process died in its sleep."""

    def __init__(self, policy, step, action):
        self.policy, self.step, self.action, self.calls = policy, step, action, 0
        self.accepts_tensors, self.samples_from_grid = True, True
        self.learn_from, self.state_dict = policy.learn_from, policy.state_dict
        self.load_state_dict = policy.load_state_dict

    def predict(self, observation, *arguments, **options):
        self.calls += 1
        if self.calls == self.step:
            self.action()
        return self.policy.predict(observation, *arguments, **options)


class Died(Exception):
    pass


def die():
    raise Died


@pytest.mark.parametrize("log_every", [1, 2])
@pytest.mark.parametrize("step", [1, 3, 5, 7])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, step, log_every):
    whole = build(tmp_path / "whole", **{"run.log_every": log_every})
    assert whole.fit() == 0
    whole.run.close()

    broken = build(tmp_path / "broken", **{"run.log_every": log_every})
    broken.policy = StopsAt(broken.policy, step, die)
    with pytest.raises(Died):
        broken.fit()
    broken.run.close()
    again = build(tmp_path / "broken", resume=True, **{"run.log_every": log_every})
    assert again.restore()
    assert again.learner.step_count == 3 * ((step - 1) // 3)
    assert again.fit() == 0
    again.run.close()
    assert same(digest(tmp_path / "whole"), digest(tmp_path / "broken"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_says_so(tmp_path, number):
    trainer = build(tmp_path / "run")
    trainer.policy = StopsAt(trainer.policy, 5, lambda: os.kill(os.getpid(), number))
    assert trainer.fit() == 128 + number
    trainer.run.close()
    again = build(tmp_path / "run", resume=True)
    again.restore()
    assert again.learner.step_count == 5
    assert again.fit() == 0
    again.run.close()
    whole = build(tmp_path / "whole")
    whole.fit()
    whole.run.close()
    assert same(digest(tmp_path / "whole"), digest(tmp_path / "run"))


DEACL = {"learner.objective": "deacl", "learner.total_steps": 2}


@pytest.mark.parametrize("action", ["signal", "death"])
def test_a_teachers_training_is_saved_on_the_way_and_goes_on_there(tmp_path, monkeypatch, action):
    whole = build(tmp_path / "whole", **DEACL)
    assert whole.learner.left_to_prepare == 6
    assert whole.fit() == 0
    whole.run.close()

    broken = build(tmp_path / "broken", **DEACL)
    prepare = broken.learner.prepare

    def prepare_or_stop():
        prepare()
        if broken.learner.left_to_prepare == 2:
            die() if action == "death" else os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(broken.learner, "prepare", prepare_or_stop)
    if action == "death":
        with pytest.raises(Died):
            broken.fit()
    else:
        assert broken.fit() == 128 + signal.SIGTERM
    broken.run.close()
    again = build(tmp_path / "broken", resume=True, **DEACL)
    assert again.restore()
    assert again.learner.left_to_prepare == (3 if action == "death" else 2)
    assert again.fit() == 0
    again.run.close()
    assert same(digest(tmp_path / "whole"), digest(tmp_path / "broken"))


def test_a_finished_run_holds_what_the_readme_promises(tmp_path):
    trainer = build(tmp_path / "run", **{"probe.enabled": True, "run.keep_every": 4})
    trainer.fit()
    summary = trainer.finish()
    trainer.run.close()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "strategy.png", "losses.png", "summary.json"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert (tmp_path / "run" / "checkpoints" / "step_00000004.pt").exists()
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert summary["steps"] == 7
    assert 0 <= summary["probe"]["pgd"]["8/255"]["accuracy"] <= summary["probe"]["clean"]["accuracy"] + 0.2
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(7))
    assert all(sum(line["epsilon_shares"]) == pytest.approx(1) for line in lines)
    assert load_config(ExperimentConfig, tmp_path / "run" / "config.yaml") == trainer.config


def poison(trainer):
    with torch.no_grad():
        trainer.learner.target.conv1.weight.fill_(float("nan"))


def test_divergence_stops_the_run_or_rolls_it_back(tmp_path):
    trainer = build(tmp_path / "raise")
    trainer.policy = StopsAt(trainer.policy, 5, lambda: poison(trainer))
    with pytest.raises(Diverged, match="step 4"):
        trainer.fit()
    trainer.run.close()

    back = build(tmp_path / "back", **{"run.on_divergence": "rollback"})
    back.policy = StopsAt(back.policy, 5, lambda: poison(back))
    assert back.fit() == 0
    assert back.rollbacks == 1
    assert back.learner.learning_rate_scale == 0.5
    assert [line["step"] for line in back.run.metrics()] == list(range(7))
    assert torch.isfinite(torch.cat([p.flatten() for p in back.learner.target.parameters()])).all()
    back.run.close()


def test_a_checkpoint_of_another_policy_is_refused(tmp_path):
    trainer = build(tmp_path / "run")
    trainer.fit()
    trainer.run.close()
    other = build(tmp_path / "run", True, agents.make("random"), policy="random", policy_args={})
    with pytest.raises(CheckpointError, match="'reinforce'"):
        other.restore()
    other.run.close()
