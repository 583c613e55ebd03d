"""Settings that were renamed: whoever writes an old name is told the new one, old run directories are translated."""

import json
import logging
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from astra_env.commands import rpat as train_rpat
from astra_env.config.command_line import run_main
from astra_env.config.dotted import flat, with_new_names
from astra_env.config.reading import load_config, to_yaml
from astra_env.config.run_configuration import config_of_run
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import ConfigError
from astra_env.storage.checkpoint import load_checkpoint, save_checkpoint
from rpat import RPATConfig, Trainer, load_network
from rpat.config import PRESET_PACKAGE
from rpat.resuming import config_of
from rpat.under_policy.config import supervised_config

ARCHIVE = Path(__file__).resolve().parents[1] / "fixtures" / "runs_0_1_0.tar.xz"
OLD = {
    "sync_bn": True,
    "run.precision": "bf16",
    "run.channels_last": True,
    "run.fold_batchnorm": True,
    "run.compile": "default",
    "run.tf32": False,
    "run.fast": True,
}


def new_name(old):
    return f"learner.{old.removeprefix('run.')}"


@pytest.fixture
def old_run(tmp_path):
    """A run of version 0.1.0 after the first of its two epochs of three steps."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "rpat"


def rewrite(run, **options):
    """Change what an old run's configuration says in its section ``run``."""
    path = run / "config.yaml"
    values = yaml.safe_load(path.read_text())
    values["run"] |= options
    path.write_text(yaml.safe_dump(values))


def script(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train_rpat.py", *map(str, arguments)])
    return run_main(train_rpat.main)


@pytest.mark.parametrize("old", OLD)
def test_an_old_name_is_refused_everywhere_with_the_new_one_in_one_line(tmp_path, monkeypatch, capsys, old):
    message = f"{old}: this setting is called {new_name(old)} now; write {new_name(old)}"
    section, _, name = old.rpartition(".")
    nested = {section: {name: OLD[old]}} if section else {name: OLD[old]}
    for overrides in ({old: OLD[old]}, nested):
        with pytest.raises(ConfigError) as caught:
            load_config(RPATConfig, "tiny", overrides, package=PRESET_PACKAGE)
        assert str(caught.value) == message
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(nested))
    with pytest.raises(ConfigError) as caught:
        load_config(RPATConfig, tmp_path / "mine.yaml", package=PRESET_PACKAGE)
    assert str(caught.value) == message
    place = ("--run_dir", tmp_path / "run")
    for given in ((f"--{old}", OLD[old]), (f"--{old}={OLD[old]}",), ("--config", tmp_path / "mine.yaml")):
        assert script(monkeypatch, "--config", "tiny", *given, *place) == 2
        assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("old", OLD)
def test_an_experiment_is_told_where_it_says_what_an_old_or_new_name_of_its_learners_settings_means(old):
    for name in (old, new_name(old)):
        config = load_config(ExperimentConfig, "supervised_tiny", {f"learner.kind_args.{name}": OLD[old]})
        with pytest.raises(ConfigError) as caught:
            supervised_config(config, 128)
        place = f"remove it; the place for it is {new_name(old)}"
        assert str(caught.value) == f"learner.kind_args.{name}: {place}"


def test_new_names_are_those_of_an_experiment():
    both = set(RPATConfig.renamed.values())
    assert both <= flat({"learner": vars(ExperimentConfig().learner)}).keys()
    assert not flat({"run": vars(ExperimentConfig().run)}).keys() & RPATConfig.renamed.keys()


def test_values_move_to_their_new_names_and_nothing_else_changes():
    old = {"sync_bn": True, "run": {"fast": True, "log_every": 3}, "method_args": {}, "learner": {"tf32": False}}
    assert with_new_names(RPATConfig, old) == {
        "run": {"log_every": 3},
        "method_args": {},
        "learner": {"tf32": False, "sync_bn": True, "fast": True},
    }
    assert old["run"] == {"fast": True, "log_every": 3}


def test_a_learner_of_the_users_own_keeps_its_argument_norm(tmp_path):
    config = load_config(ExperimentConfig, "tiny", {"learner.kind": "mine:Learner", "learner.kind_args.norm": "mine"})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert config_of_run(ExperimentConfig, tmp_path) == config
    assert config.learner.kind_args == {"norm": "mine"}


def test_an_old_runs_configuration_is_translated_with_epochs_as_steps(old_run):
    rewrite(old_run, precision="bf16", checkpoint_every=2, keep_every=4)
    config = config_of(old_run)
    assert config.learner.precision == "bf16"
    assert (config.run.checkpoint_every, config.run.keep_every) == (6, 12)
    rewrite(old_run, checkpoint_every=1, keep_every=0)
    config = config_of(old_run)
    assert (config.run.checkpoint_every, config.run.keep_every) == (None, 0)
    assert load_network(old_run)[1] == config


def test_an_old_run_resumes_with_its_own_translated_settings(old_run, monkeypatch):
    rewrite(old_run, channels_last=True, keep_every=1)
    assert script(monkeypatch, "--resume", "--run_dir", old_run) == 0
    assert json.loads((old_run / "summary.json").read_text())["finished"]
    names = {path.name for path in (old_run / "checkpoints").iterdir()}
    assert {"step_00000006.pt", "last.pt"} <= names
    stored = yaml.safe_load(load_checkpoint(old_run / "checkpoints" / "last.pt")["config"])
    assert (stored["run"]["keep_every"], stored["learner"]["channels_last"]) == (3, True)


@pytest.mark.parametrize(
    ("step", "epoch", "sums", "steps"), [(3, 0, {}, 3), (7, 2, {"loss": 1}, 3), (2, 0, {"x": 1}, 0)]
)
def test_the_length_of_an_old_runs_epoch_is_read_from_its_checkpoint(old_run, caplog, step, epoch, sums, steps):
    rewrite(old_run, keep_every=5)
    state = load_checkpoint(old_run / "checkpoints" / "last.pt")
    position = step if epoch == 0 else step - 3 * epoch
    state |= {"step": step, "sampler": {"epoch": epoch, "position": position}, "sums": sums}
    save_checkpoint(old_run / "checkpoints" / "last.pt", state)
    with caplog.at_level(logging.WARNING):
        assert config_of(old_run).run.keep_every == 5 * steps
    assert ("run.keep_every: 5 epochs of unknown length" in caplog.text) == (steps == 0)


def test_another_sync_bn_than_an_old_runs_is_another_run_and_another_precision_is_not(old_run):
    values = yaml.safe_load((old_run / "config.yaml").read_text())
    values["sync_bn"] = True
    state = load_checkpoint(old_run / "checkpoints" / "last.pt")
    save_checkpoint(old_run / "checkpoints" / "last.pt", {**state, "config": yaml.safe_dump(values)})
    with pytest.raises(ConfigError, match=r"^learner\.sync_bn: the run was started with True, got False"):
        Trainer(config_of(old_run)).fit(old_run, resume=True)
    values["sync_bn"] = False
    values["run"]["precision"] = "bf16"
    save_checkpoint(old_run / "checkpoints" / "last.pt", {**state, "config": yaml.safe_dump(values)})
    assert Trainer(config_of(old_run)).fit(old_run, resume=True)["finished"]


def test_intervals_count_steps_and_a_checkpoint_is_written_once_an_epoch_by_default(tmp_path):
    small = {"test.enabled": False, "ema.enabled": False}
    for name, options, expected in (
        ("usual", {}, [0, 3, 6]),
        ("often", {"run.checkpoint_every": 2}, [0, 2, 4, 6]),
        ("kept", {"run.checkpoint_every": 4, "run.keep_every": 5}, [0, 4, 5, 6]),
    ):
        trainer = Trainer("tiny", {**small, **options})
        saved = saves_of(trainer)
        trainer.fit(tmp_path / name)
        assert saved == expected, name
    names = {path.name for path in (tmp_path / "kept" / "checkpoints").iterdir()}
    assert names == {"last.pt", "previous.pt", "best.pt", "step_00000005.pt"}
    assert load_checkpoint(tmp_path / "kept" / "checkpoints" / "previous.pt")["step"] == 5


def saves_of(trainer):
    """Return the list that the steps of a trainer's checkpoints will be written to."""
    saved, original = [], trainer.save

    def save(keep_as=None):
        saved.append(trainer.learner.step_count)
        original(keep_as)

    trainer.save = save
    return saved
