"""Run directories that version 0.1.0 wrote load, resume and evaluate: fixtures made by that version, a step to go."""

import json
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import agents
from astra_env.commands import rpat as train_rpat
from astra_env.commands import sb3 as train_sb3
from astra_env.commands import train as train_astra
from astra_env.config.command_line import run_main
from astra_env.config.run_configuration import config_of_run
from astra_env.config.schema import ExperimentConfig
from astra_env.evaluation.campaign.loading import load_network
from astra_env.learner.make import make_learner
from astra_env.storage.checkpoint import load_checkpoint
from rpat import load_network as load_classifier

ARCHIVE = Path(__file__).resolve().parents[1] / "fixtures" / "runs_0_1_0.tar.xz"


@pytest.fixture
def runs(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    for path in (tmp_path / name / "config.yaml" for name in ("astra", "random", "supervised")):
        # 0.1.0 rounded every class by itself, and took 129 digits when 128 were asked for.
        path.write_text(path.read_text().replace("max_images: 128", "max_images: 129"))
    return tmp_path


def run(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    return run_main(script.main)


@pytest.mark.parametrize("name", ["astra", "random", "supervised"])
def test_a_learner_continues_from_an_old_checkpoint(runs, name):
    learner = make_learner(config_of_run(ExperimentConfig, runs / name))
    state = load_checkpoint(runs / name / "checkpoints" / "last.pt")
    learner.load_state_dict(state)
    assert learner.step_count == 4
    weights = learner.target.state_dict()
    for key, value in state["target"].items():
        assert torch.equal(weights[key], value), key


@pytest.mark.parametrize("name", ["astra", "random", "supervised"])
def test_an_old_run_resumes_to_its_end(runs, monkeypatch, name):
    before = [json.loads(line)["loss"] for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    assert run(monkeypatch, train_astra, "--resume", "--quiet", "--run_dir", runs / name) == 0
    after = [json.loads(line)["loss"] for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    assert len(before) == len(after) == 5
    assert after[:4] == before[:4]
    # The step after the checkpoint sees its weights and generators, so its loss is the old one.
    assert after[4] == pytest.approx(before[4], rel=0.02)


def test_an_old_supervised_run_resumes_and_its_selected_network_loads(runs, monkeypatch):
    network, config = load_classifier(runs / "rpat", "best")
    assert network(torch.rand(2, 3, 8, 8)).shape == (2, 10)
    assert config.method == "pgd_at"
    assert run(monkeypatch, train_rpat, "--resume", "--run_dir", runs / "rpat") == 0


def test_an_old_agent_resumes_or_is_told_finished(runs, monkeypatch):
    assert run(monkeypatch, train_sb3, "--resume", "--run_dir", runs / "sb3") == 0


def test_an_old_encoder_is_evaluated_and_its_policy_acts_elsewhere(runs):
    loaded = load_network(runs / "astra")
    assert loaded.network(torch.rand(4, 3, 8, 8)).shape[0] == 4
    learner = make_learner(config_of_run(ExperimentConfig, runs / "astra"))
    context = agents.Context(learner.space, learner.device, 0, 4, 0)
    policy = agents.make(str(runs / "astra"), context=context)
    assert policy.predict(learner.observation())[0].shape == (len(learner.observation()), 3)
