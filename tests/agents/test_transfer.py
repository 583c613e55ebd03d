"""A strategy network trained in one run acts in another."""

import sys

import numpy as np
import pytest
import torch

import agents
from agents.reinforce import Reinforce
from astra_env.commands import train as train_astra
from astra_env.config.command_line import run_main
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import CheckpointError, ConfigError
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.storage.checkpoint import load_checkpoint
from astra_env.strategy import StrategySpace

TINY = ["--config", "tiny", "--quiet", "--learner.total_steps", "4", "--probe.enabled", "false"]
VIEWS = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)


def train(monkeypatch, run_dir, *arguments):
    monkeypatch.setattr(sys, "argv", ["train_astra.py", *TINY, "--run_dir", str(run_dir), *map(str, arguments)])
    return run_main(train_astra.main)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("source") / "run"
    with pytest.MonkeyPatch.context() as patch:
        assert train(patch, run_dir, "--policy_args", "{preset: paper, width: 4, blocks: [1, 1], update_every: 1}") == 0
    return run_dir


def tiny_context(**fields):
    strategy = load_config(ExperimentConfig, "tiny").strategy
    return agents.Context(StrategySpace(strategy.epsilon, strategy.steps, strategy.step_size), **fields)


@pytest.mark.parametrize("part", ["", "checkpoints/last.pt"])
def test_a_run_and_its_checkpoint_choose_as_the_trained_network_does(source, part):
    policy = agents.make(str(source / part), context=tiny_context())
    trained = load_checkpoint(source / "checkpoints" / "last.pt")["policy"]
    original = Reinforce("paper", width=4, blocks=(1, 1), space=tiny_context().space)
    original.load_state_dict(trained)
    expected = original.predict(VIEWS, deterministic=True)[0]
    assert np.array_equal(policy.predict(VIEWS, deterministic=True)[0], expected)
    assert not hasattr(policy, "learn_from")


def test_a_transferred_policy_acts_frozen_in_another_run_and_resumes(source, tmp_path, monkeypatch):
    assert train(monkeypatch, tmp_path / "run", "--policy", source, "--policy_args", "{}", "--seed", "5") == 0
    before = load_checkpoint(source / "checkpoints" / "last.pt")["policy"]["strategy"]
    after = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert all(torch.equal(before[name], after["policy"]["strategy"][name]) for name in before)
    assert after["policy_name"] == str(source)
    monkeypatch.setattr(sys, "argv", ["train_astra.py", "--resume", "--quiet", "--run_dir", str(tmp_path / "run")])
    assert run_main(train_astra.main) == 0
    again = agents.make(str(tmp_path / "run"), context=tiny_context())
    assert torch.equal(again.state_dict()["strategy"]["conv1.weight"], before["conv1.weight"])


def test_it_goes_on_learning_when_asked(source, tmp_path, monkeypatch):
    arguments = "{learn: true, preset: improved, learning_rate: 0.01}"
    assert train(monkeypatch, tmp_path / "run", "--policy", source, "--policy_args", arguments) == 0
    before = load_checkpoint(source / "checkpoints" / "last.pt")["policy"]["strategy"]
    after = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")["policy"]["strategy"]
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])


def test_other_grids_are_named(source):
    context = agents.Context(StrategySpace(["4/255", "8/255", "16/255"], [1, 2, 4], ["2/255", "4/255"]))
    with pytest.raises(ConfigError, match=r"chooses strategy.steps among \[1, 2, 3\], this run has another grid"):
        agents.make(str(source), context=context)


def test_what_is_no_strategy_network_is_refused(source, tmp_path):
    with pytest.raises(CheckpointError, match="cannot read"):
        agents.make(str(tmp_path / "none.pt"), context=tiny_context())
    learner = ContrastiveLearner(load_config(ExperimentConfig, "tiny"))
    torch.save({**learner.state_dict(), "policy": {}, "policy_name": "fixed"}, tmp_path / "fixed.pt")
    with pytest.raises(CheckpointError, match=r"holds no strategy network .*policy 'fixed'"):
        agents.make(str(tmp_path / "fixed.pt"), context=tiny_context())
    damaged = load_checkpoint(source / "checkpoints" / "last.pt")
    damaged["policy"]["strategy"]["bn1.bias"] = torch.full((4,), float("nan"))
    torch.save(damaged, tmp_path / "damaged.pt")
    with pytest.raises(CheckpointError, match=r"bn1.bias: holds NaN"):
        agents.make(str(tmp_path / "damaged.pt"), context=tiny_context())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learn": "yes"}, "policy_args.learn: expected true or false, got 'yes'"),
        ({"learning_rate": 0.1}, "policy_args.learning_rate: a transferred policy takes it only with learn: true"),
        ({"learn": True, "width": 8}, "policy_args.width: is read off the checkpoint"),
        ({"learn": True, "speed": 8}, "policy_args.speed: unknown argument"),
    ],
)
def test_arguments_that_do_not_fit_are_named(source, arguments, message):
    with pytest.raises(ConfigError, match=message):
        agents.make(str(source), context=tiny_context(), **arguments)
