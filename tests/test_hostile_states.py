"""Checkpoints that are whole but wrong, and YAML that is a trap: a typed error, and nothing is changed."""

import copy
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import agents
from astra_env.checkpoint import encode
from astra_env.config import ExperimentConfig
from astra_env.configuration import build_parser, load_config, parse_command_line, to_yaml
from astra_env.errors import AstraError, CheckpointError, ConfigError, RunDirectoryError
from astra_env.learner import ContrastiveLearner
from astra_env.run_configuration import config_of_run
from astra_env.run_directory import RunDirectory
from astra_env.strategy import AttackStrategy
from astra_env.trainer import Trainer
from rpat import RPATConfig
from rpat import Trainer as SupervisedTrainer
from rpat.config import PRESET_PACKAGE

EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def paths(value, before=()):
    """All places in a state: keys of mappings and indices of lists, at any depth."""
    found = []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        found += [(*before, key), *paths(inner, (*before, key))]
    return found


def parent_of(state, path):
    for key in path[:-1]:
        state = state[key]
    return state


def damages(value):
    """What could stand in a checkpoint where ``value`` belongs, each surely wrong there."""
    if isinstance(value, torch.Tensor):
        wrong = [torch.cat((value.reshape(-1), value.reshape(-1)[:1] if value.numel() else torch.zeros(1)))]
        wrong.append(value.to(torch.complex64) if value.dtype != torch.uint8 else value.float())
        if value.is_floating_point() and value.numel():
            wrong += [torch.full_like(value, math.nan), torch.full_like(value, math.inf)]
        return [*wrong, None, "text", [1]]
    if isinstance(value, dict):
        return [None, 3, "text", torch.ones(2)]
    if isinstance(value, list):
        return [None, 3, [*value, *value, 0]]
    if isinstance(value, bool) or value is None:
        return ["text", [1], torch.ones(2)]
    if isinstance(value, int):
        return [-1, 1.5, None, "text", math.nan, torch.ones(2)]
    return (
        [math.nan, math.inf, None, "text", torch.ones(2)] if isinstance(value, float) else [None, 3, b"", torch.ones(2)]
    )


def bits(state):
    """A state as bytes, for comparing every bit of it."""
    return encode(state)


@pytest.fixture(scope="module")
def learner():
    found = ContrastiveLearner(load_config(ExperimentConfig, "tiny", {"learner.total_steps": 100}))
    for _ in range(2):
        found.step(AttackStrategy.constant(1, 8 / 255, 1, 4 / 255))
    return found


@EXAMPLES
@given(data=st.data())
def test_a_learner_refuses_any_damage_to_its_state_and_stays_as_it_is(learner, data):
    good = copy.deepcopy(learner.state_dict())
    bad = copy.deepcopy(good)
    damage(bad, data)
    with pytest.raises(CheckpointError) as caught:
        learner.load_state_dict(bad)
    assert "\n" not in str(caught.value)
    assert bits(learner.state_dict()) == bits(good)


def damage(state, data, spare=()):
    choices = [path for path in paths(state) if path[0] not in spare and not is_optional(path)]
    path = data.draw(st.sampled_from(choices))
    parent = parent_of(state, path)
    wrong = damages(parent[path[-1]])
    choice = data.draw(st.integers(-1, len(wrong) - 1))
    if choice >= 0:
        parent[path[-1]] = wrong[choice]
    elif isinstance(parent, dict):
        del parent[path[-1]]
    else:
        parent.append(parent[path[-1]])


def is_optional(path):
    """May be absent or other: BatchNorm's counters, and buffers that an optimiser makes when it needs them."""
    return path[-1] == "num_batches_tracked" or str(path[-1]).endswith("num_batches_tracked") or path[:2] == OPTIONAL


OPTIONAL = ("optimizer", "state")


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
    assert bits(learner.state_dict()) == bits(good)


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


@EXAMPLES
@given(data=st.data())
def test_a_run_refuses_any_damage_to_its_checkpoint_and_neither_it_nor_a_file_changes(trainer, data):
    good = copy.deepcopy(trainer._state())
    bad = copy.deepcopy(good)
    spare = ("config", "timing")  # for readers only
    damage(bad, data, spare)
    folder = trainer.run.path
    whole = (folder / "checkpoints" / "last.pt").read_bytes()
    try:
        (folder / "checkpoints" / "last.pt").write_bytes(encode({**bad, "metrics_bytes": 1}))
        (folder / "checkpoints" / "previous.pt").unlink(missing_ok=True)
        files = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
        with pytest.raises(CheckpointError) as caught:
            trainer.restore()
        assert "\n" not in str(caught.value)
        assert {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()} == files
        assert bits(trainer._state()) == bits(good)
    finally:
        (folder / "checkpoints" / "last.pt").write_bytes(whole)
        trainer.run._cut_to = None


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


@EXAMPLES
@given(data=st.data())
def test_a_classifier_refuses_any_damage_to_its_state_and_stays_as_it_is(supervised, data):
    good = copy.deepcopy(supervised.state_dict())
    bad = copy.deepcopy(good)
    damage(bad, data, spare=("learning_rate_scale",))
    if "ema" in bad and bad["ema"] is None:
        return
    with pytest.raises(CheckpointError) as caught:
        supervised.load_state_dict(bad)
    assert "\n" not in str(caught.value)
    assert bits(supervised.state_dict()) == bits(good)


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
    for cls, package in ((ExperimentConfig, "astra_env.configs"), (RPATConfig, PRESET_PACKAGE)):
        if cls is RPATConfig and trap in ("include", "climb"):
            continue
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


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
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
    state = {**copy.deepcopy(trainer._state()), "policy_name": "mine:Policy", "config": {"policy": "mine:Policy"}}
    monkeypatch.setattr(trainer.run, "restore", lambda: state)
    with pytest.raises(CheckpointError, match="chosen by policy 'mine:Policy'"):
        trainer.restore()


def test_an_evaluation_imports_no_code_that_only_the_run_names(tmp_path, learner):
    from astra_env.checkpoint import save_checkpoint
    from astra_env.evaluation.config import EvaluationConfig
    from astra_env.evaluation.runner import with_data_of_run

    file = tmp_path / "run" / "checkpoints" / "last.pt"
    save_checkpoint(file, learner.state_dict())
    (tmp_path / "run" / "config.yaml").write_text("data: {name: 'mine:images'}\n")
    with pytest.raises(ConfigError, match=r"--data\.name mine:images"):
        with_data_of_run(EvaluationConfig(), file)
