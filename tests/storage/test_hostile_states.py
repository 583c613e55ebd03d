"""Checkpoints that are whole but wrong, and YAML that is a trap: a typed error, and nothing is changed."""

import base64
import copy
import io
import itertools
import json
import math
import os
import zipfile

import numpy as np
import pytest
import torch
from fuzzing import cases, damaged, flipped, paths, same
from hypothesis import given
from hypothesis import strategies as st

import agents
from agents.sb3 import AgentConfig
from agents.sb3.run import AgentRun, load_agent
from astra_env.config.reading import build_parser, load_config, parse_command_line, to_yaml
from astra_env.config.run_configuration import config_of_run
from astra_env.config.schema import ExperimentConfig
from astra_env.envs import AttackStrategyEnv
from astra_env.errors import AstraError, CheckpointError, ConfigError, InputError, RunDirectoryError
from astra_env.evaluation.campaign.loading import load_network
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.storage.checkpoint import encode, load_checkpoint, save_checkpoint
from astra_env.storage.run_directory import RunDirectory
from astra_env.strategy import AttackStrategy
from astra_env.training.trainer import Trainer
from rpat import RPATConfig
from rpat import Trainer as SupervisedTrainer
from rpat.config import PRESET_PACKAGE


@pytest.fixture(scope="module")
def learner():
    found = ContrastiveLearner(load_config(ExperimentConfig, "tiny", {"learner.total_steps": 100}))
    for _ in range(2):
        found.step(AttackStrategy.constant(1, 8 / 255, 1, 4 / 255))
    return found


def refuses(load, state_of, data, optional=lambda path: False):
    """Damage the state of something: loading it raises CheckpointError in one line and changes nothing."""
    good = copy.deepcopy(state_of())
    bad = damaged(good, data, [path for path in paths(good) if not optional(path)])
    with pytest.raises(CheckpointError) as caught:
        load(bad)
    assert "\n" not in str(caught.value)
    assert same(state_of(), good)


def is_buffer(path):
    """Buffers that an optimiser makes when it needs them may be absent."""
    return ("optimizer", "state") in itertools.pairwise(path)


@cases(100)
@given(data=st.data())
def test_a_learner_refuses_any_damage_to_its_state_and_stays_as_it_is(learner, data):
    refuses(learner.load_state_dict, learner.state_dict, data, is_buffer)


def test_a_learners_state_without_one_of_its_parts_is_refused(learner):
    good = copy.deepcopy(learner.state_dict())
    for part in good:
        with pytest.raises(CheckpointError, match=f"{part!r} is missing"):
            learner.load_state_dict({name: value for name, value in good.items() if name != part})
    assert same(learner.state_dict(), good)


@pytest.mark.parametrize("value", [torch.ones(2, 2), torch.tensor(math.nan), "text"])
def test_buffers_of_an_optimiser_that_do_not_fit_its_parameters_are_refused(learner, value):
    good = copy.deepcopy(learner.state_dict())
    bad = copy.deepcopy(good)
    bad["optimizer"]["state"][0]["momentum_buffer"] = value
    with pytest.raises(CheckpointError, match="momentum_buffer"):
        learner.load_state_dict(bad)
    bad["optimizer"]["state"] = {10_000: {"momentum_buffer": torch.ones(1)}}
    with pytest.raises(CheckpointError, match="no parameter 10000"):
        learner.load_state_dict(bad)
    assert same(learner.state_dict(), good)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    config = load_config(ExperimentConfig, "tiny", {"learner.total_steps": 3, "probe.enabled": False})
    learner = ContrastiveLearner(config)
    context = agents.Context(learner.space, learner.device, config.seed, learner.total_steps)
    policy = agents.make(config.policy, context=context, **config.policy_args)
    with RunDirectory(tmp_path_factory.mktemp("runs") / "run", to_yaml(config)) as run:
        found = Trainer(config, learner, policy, run, progress=False)
        found.fit()
        yield found


@cases(60)
@given(data=st.data())
def test_a_run_refuses_any_damage_to_its_checkpoint_and_neither_it_nor_a_file_changes(trainer, data):
    folder, spare = trainer.run.path, ("config", "timing")  # for readers only
    last = folder / "checkpoints" / "last.pt"
    whole = last.read_bytes()
    (folder / "checkpoints" / "previous.pt").unlink(missing_ok=True)

    def load(state):
        last.write_bytes(encode({**state, "metrics_bytes": 1}))
        files = contents(folder)
        try:
            trainer.restore()
        finally:
            assert contents(folder) == files

    try:
        refuses(load, trainer.state_dict, data, lambda path: path[0] in spare or is_buffer(path))
    finally:
        last.write_bytes(whole)
        trainer.run._cut_to = None


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}


@pytest.mark.parametrize("length", [-1, 1.5, "all", None, True])
def test_a_length_of_the_metrics_that_is_none_is_refused(tmp_path, length):
    with RunDirectory(tmp_path, "") as run:
        run.log(0, {"loss": 1.0})
        run.save({"step": 1})
        (run.checkpoints / "last.pt").write_bytes(encode({"step": 1, "metrics_bytes": length}))
        with pytest.raises(CheckpointError, match="metrics_bytes: expected an integer >= 0"):
            run.restore()
        assert len(run.metrics()) == 1


@pytest.fixture(scope="module")
def supervised():
    found = SupervisedTrainer("tiny", {"ema.start_epoch": 0, "ema.enabled": True}).learner
    found.step()
    return found


@cases(100)
@given(data=st.data())
def test_a_classifier_refuses_any_damage_to_its_state_and_stays_as_it_is(supervised, data):
    def optional(path):
        return is_buffer(path) or path in (("learning_rate_scale",), ("ema",))

    refuses(supervised.load_state_dict, supervised.state_dict, data, optional)


@pytest.mark.parametrize(("name", "value"), [("dampening", 1.5), ("momentum", 0.5), ("weight_decay", 0.0)])
def test_hyperparameters_of_an_optimiser_that_are_not_the_runs_are_refused(supervised, name, value):
    good = copy.deepcopy(supervised.state_dict())
    bad = copy.deepcopy(good)
    bad["optimizer"]["param_groups"][0][name] = value
    with pytest.raises(CheckpointError, match=name):
        supervised.load_state_dict(bad)
    assert same(supervised.state_dict(), good)


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    options = {"width": 2, "blocks": (1,), "total_timesteps": 64, "hyperparameters": {"n_steps": 2}, "device": "cpu"}
    config = AgentConfig(experiment="tiny", num_envs=8, checkpoint_every=16, **options)
    with RunDirectory(tmp_path_factory.mktemp("agents") / "run", to_yaml(config)) as run:
        found = AgentRun(config, run)
        found.train()
        yield found


@cases(60)
@given(data=st.data())
def test_an_agents_run_takes_its_checkpoint_with_any_damage_or_refuses_it_in_one_line(agent, data):
    """A process that meets such a checkpoint ends, so the agent may be half loaded; the files are as they were."""
    good = load_checkpoint(agent.run.checkpoints / "last.pt")
    bad = damaged(good, data, paths(good))
    files = contents(agent.run.path)
    restore, agent.run.restore = agent.run.restore, lambda: bad
    try:
        agent.restore()
    except CheckpointError as error:
        assert "\n" not in str(error)  # noqa: PT017 - times and the like may be anything
    finally:
        agent.run.restore = restore
    assert contents(agent.run.path) == files


@cases(100)
@given(data=st.data())
def test_an_archive_of_an_agent_with_any_damage_loads_or_is_refused(agent, tmp_path_factory, data):
    path = agent.run.path / "model.zip"
    whole = path.read_bytes()
    try:
        path.write_bytes(flipped(whole, data))
        load_agent(agent.config, agent.run.path)
    except CheckpointError as error:
        assert "\n" not in str(error)  # noqa: PT017 - a flip in a weight is a weight
    finally:
        path.write_bytes(whole)


class Malicious:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_code_in_an_archive_of_an_agent_is_not_run(agent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    buffer = io.BytesIO()
    torch.save({"weight": Malicious()}, buffer)
    with zipfile.ZipFile(tmp_path / "run" / "model.zip", "w") as archive:
        archive.writestr("policy.pth", buffer.getvalue())
        archive.writestr("data", json.dumps({"policy_class": {":serialized:": base64.b64encode(b"x").decode()}}))
    with pytest.raises(CheckpointError, match="policy: refused, the file holds more than tensors"):
        load_agent(agent.config, tmp_path / "run")
    with pytest.raises(InputError, match="holds pickled objects, which could run code"):
        agents.make("agents.sb3:trained", path=str(tmp_path / "run" / "model.zip"))
    assert not (tmp_path / "pwned").exists()


@pytest.fixture(scope="module")
def env():
    found = AttackStrategyEnv("tiny", {"learner.total_steps": 4, "env.chunk_steps": 1})
    found.reset(seed=0)
    found.step(np.zeros(3, dtype=np.int64))
    return found


@cases(60)
@given(data=st.data())
def test_an_environment_refuses_any_damage_to_the_training_in_its_state(env, data):
    good = env.state_dict()
    places = [path for path in paths(good) if path[0] in ("target", "learner") and not is_buffer(path[1:])]
    with pytest.raises(CheckpointError) as caught:
        env.load_state_dict(damaged(good, data, places))
    assert "\n" not in str(caught.value)


@cases(100)
@given(data=st.data())
def test_an_evaluation_refuses_networks_with_any_damage(trainer, tmp_path_factory, data):
    good = {"target": trainer.learner.target.state_dict()}
    places = [path for path in paths(good) if not path[-1].endswith(("num_batches_tracked", "mean", "std"))]
    file = tmp_path_factory.getbasetemp() / "network.pt"
    save_checkpoint(file, damaged(good, data, [path for path in places if not path[-1].startswith("fc.")]))
    with pytest.raises(CheckpointError) as caught:
        load_network(file)
    assert "\n" not in str(caught.value)


def test_a_small_file_that_stands_for_a_huge_network_is_refused(tmp_path):
    wide = {"conv1.weight": torch.zeros(1).expand(10**6, 3, 3, 3), "layer1.0.conv1.weight": torch.ones(1)}
    torch.save(wide, tmp_path / "expanded.pt")
    with pytest.raises(CheckpointError, match="without its values"):
        load_network(tmp_path / "expanded.pt")
    torch.save({**wide, "conv1.weight": torch.zeros(40_000, 3, 1, 1)}, tmp_path / "wide.pt")
    with pytest.raises(CheckpointError, match=r"wide\.pt"):
        load_network(tmp_path / "wide.pt")
    torch.save({f"layer1.{10**9}.bn_list.0": torch.ones(1), "conv1.weight": torch.ones(1)}, tmp_path / "deep.pt")
    with pytest.raises(CheckpointError, match="names 1000000001 blocks"):
        load_network(tmp_path / "deep.pt")


BOMB = "policy_args:\n  a0: &a0 [1, 2, 3]\n" + "".join(
    f"  a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)
)
TRAPS = {
    "bomb": (BOMB, "expands to more than 100000 values"),
    "loop": ("policy_args: &a {x: *a}\n", "expands to more than 100000 values"),
    "depth": ("policy_args: " + "[" * 20_000, "not valid YAML"),
    "object": ("policy: !!python/name:os.system\n", "not valid YAML"),
    "include": ("learner: other.yaml\n", "learner: expected a section of settings, got 'other.yaml'"),
    "climb": ("learner: ../../../etc/passwd\n", "learner: expected a section of settings"),
    "sublist": ("data: [../../../etc/passwd]\n", "data: expected a section of settings"),
    "number": ("seed: " + "9" * 5000 + "\n", "config|seed"),
    "date": ("seed: 2001-99-99\n", "config|seed"),
    "bytes": (b"seed: \xff\xfe\n", "cannot read|not valid YAML"),
}


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.timeout(60)
def test_yaml_that_is_a_trap_is_refused_at_once_by_file_and_by_command_line(tmp_path, monkeypatch, trap):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.yaml").write_text("batch_size: 64\n")
    text, message = TRAPS[trap]
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for cls, package in ((ExperimentConfig, "astra_env.config.presets"), (RPATConfig, PRESET_PACKAGE)):
        if cls is RPATConfig:
            path.write_bytes(path.read_bytes().replace(b"learner:", b"network:"))
            message = message.replace("learner:", "network:")
        with pytest.raises(AstraError, match=message) as caught:
            load_config(cls, path, package=package)
        assert "\n" not in str(caught.value)
        with pytest.raises(AstraError, match=message):
            parse_command_line(build_parser(cls, package=package), ["--config", str(path)], package=package)


def test_a_configuration_names_no_other_files(tmp_path):
    (tmp_path / "other.yaml").write_text("learner: {batch_size: 64}\n")
    (tmp_path / "config.yaml").write_text(f"config: {tmp_path}/other.yaml\n")
    for arguments in (["--config", str(tmp_path / "config.yaml")], [f"--config={tmp_path}/config.yaml"]):
        with pytest.raises(ConfigError, match="names another configuration"):
            parse_command_line(build_parser(ExperimentConfig), arguments)


@cases(150)
@given(st.text(alphabet=st.sampled_from(list("{}[]&*!|>-:,'\"#% \n\tab1.<?@`")), max_size=60))
def test_no_text_breaks_the_configuration_loader(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    try:
        load_config(ExperimentConfig, path)
    except AstraError as error:
        assert "\n" not in str(error)  # noqa: PT017 - a configuration is as good an answer


def test_code_is_imported_only_from_the_configuration_and_named_before(tmp_path, caplog, monkeypatch):
    (tmp_path / "mine.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "config.yaml").write_text("policy: mine:Policy\nlearner: {reward: 'mine:reward'}\n")
    config = config_of_run(ExperimentConfig, tmp_path)
    assert config.policy == "mine:Policy"
    assert "policy imports your code 'mine:Policy'" in caplog.text
    assert "learner.reward imports your code 'mine:reward'" in caplog.text
    with pytest.raises(RunDirectoryError, match="there is no run in"):
        config_of_run(ExperimentConfig, tmp_path / "nowhere")


def test_what_a_checkpoint_says_of_its_policy_is_compared_never_imported(trainer, monkeypatch):
    state = {**copy.deepcopy(trainer.state_dict()), "policy_name": "mine:Policy", "config": {"policy": "mine:Policy"}}
    monkeypatch.setattr(trainer.run, "restore", lambda: state)
    with pytest.raises(CheckpointError, match="chosen by policy 'mine:Policy'"):
        trainer.restore()


def test_an_evaluation_imports_no_code_that_only_the_run_names(tmp_path, learner):
    from astra_env.evaluation.campaign.config import EvaluationConfig
    from astra_env.evaluation.campaign.runner import with_data_of_run

    file = tmp_path / "run" / "checkpoints" / "last.pt"
    save_checkpoint(file, learner.state_dict())
    (tmp_path / "run" / "config.yaml").write_text("data: {name: 'mine:images'}\n")
    with pytest.raises(ConfigError, match=r"--data\.name mine:images"):
        with_data_of_run(EvaluationConfig(), file)
