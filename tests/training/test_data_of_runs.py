"""A run and its data: what the end needs is looked for at the start; data may move; paths mean the same everywhere."""

import os
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from astra_env.commands import evaluate as evaluate_script
from astra_env.commands import rpat as train_rpat
from astra_env.commands import train as train_astra
from astra_env.config.command_line import run_main
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import ConfigError, RunDirectoryError
from astra_env.storage.room import require_room

FOLDER = ["--data.name", "folder", "--data.image_size", "8", "--data.max_images", "null"]
TINY = ["--config", "tiny", "--quiet", *FOLDER, "--learner.total_steps", "2", "--learner.batch_size", "8"]
PROBE = ["--probe.enabled", "true", "--probe.epochs", "1", "--probe.steps", "1"]
RPAT = ["--config", "tiny", *FOLDER, "--epochs", "1", "--batch_size", "8", "--validation.size", "4"]
RPAT += ["--ema.enabled", "false", "--rp_start_epoch", "0"]
UNTESTED = [*RPAT, "--test.enabled", "false"]


def images(root, splits=("train", "test"), count=10):
    for split in splits:
        for label, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (8, 8), (index * 20, 99 * label, 200)).save(folder / f"{index}.png")
    return root


@pytest.fixture
def call(monkeypatch, capsys):
    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
        status = run_main(script.main)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def refused(answer, *parts):
    status, _, said = answer
    lines = [line for line in said.splitlines() if not line.startswith("warning: ")]
    assert (status, len(lines)) == (2, 1), said
    assert all(part in lines[0] for part in parts), said


def test_pretraining_without_test_images_ends_before_it_starts_unless_it_is_not_measured(tmp_path, call):
    root = images(tmp_path / "data", ("train",))
    run = ["--run_dir", tmp_path / "run", "--data.root", root]
    answer = call(train_astra, *TINY, *PROBE, *run)
    refused(answer, "probe.enabled: ", "test/<class>", "--data.holdout 0.1", "--probe.enabled false")
    assert not (tmp_path / "run").exists()
    assert call(train_astra, *TINY, *run, "--probe.enabled", "false")[0] == 0
    status, out, _ = call(train_astra, *TINY, *PROBE, *run[2:], "--run_dir", tmp_path / "held", "--data.holdout", "0.2")
    assert status == 0
    assert "linear probe: clean" in out
    assert (
        call(evaluate_script, tmp_path / "held", "--quiet", "--out", tmp_path / "evaluation", "--head.epochs", "1")[0]
        == 0
    )


def test_unlabelled_images_pretrain_and_say_in_one_line_what_an_evaluation_needs(tmp_path, call):
    flat = tmp_path / "flat"
    flat.mkdir()
    for index in range(10):
        Image.new("RGB", (8, 8), (index * 20, 0, 200)).save(flat / f"{index}.png")
    run = ["--run_dir", tmp_path / "run", "--data.root", flat]
    refused(call(train_astra, *TINY, *PROBE, *run), "probe.enabled: ", "--probe.enabled false")
    status, _, said = call(train_astra, *TINY, *run, "--probe.enabled", "false")
    assert status == 0
    (line,) = said.splitlines()
    assert "taken without labels" in line
    assert "an evaluation needs labelled images in train/<class>/ and test/<class>/" in line


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--probe.epsilon", "[8]"], "probe.epsilon: expected a number in [0, 1] pixel units, got 8; "),
        (["--probe.step_size", "0"], "probe.step_size"),
        (["--probe.batch_size", "0"], "probe.batch_size"),
    ],
)
def test_numbers_of_the_measurement_are_looked_at_first(tmp_path, call, option, said):
    root = images(tmp_path / "data")
    refused(call(train_astra, *TINY, *PROBE, "--run_dir", tmp_path / "run", "--data.root", root, *option), said)
    assert not (tmp_path / "run").exists()


def test_a_damaged_test_image_is_named_before_the_first_step(tmp_path, call):
    root = images(tmp_path / "data")
    (root / "test" / "dog" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    refused(
        call(train_astra, *TINY, *PROBE, "--run_dir", tmp_path / "run", "--data.root", root), "dog/3.png", "damaged"
    )
    assert not (tmp_path / "run").exists()


def test_a_supervised_run_without_test_images_says_so_first_and_runs_untested(tmp_path, call):
    root = images(tmp_path / "data", ("train",))
    run = [*RPAT, "--run_dir", tmp_path / "run", "--data.root", root]
    refused(call(train_rpat, *run), "test.enabled: ", "test/<class>", "--test.enabled false")
    assert not (tmp_path / "run").exists()
    assert call(train_rpat, *run, "--test.enabled", "false")[0] == 0


def test_a_disk_without_room_for_the_checkpoints_is_said(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"need 3000000\.0 GB, .*--run\.keep_every"):
        require_room(tmp_path / "run" / "deep", 10**15)
    require_room(tmp_path / "run", 1000, kept=5)
    assert not (tmp_path / "run").exists()


def test_an_evaluation_that_would_fail_at_the_second_network_ends_before_the_first(tmp_path, call):
    import torch

    from astra_env.models import resnet18

    for classes in (10, 7):
        torch.save(resnet18(classes, width=4).state_dict(), tmp_path / f"{classes}.pt")
    files = [tmp_path / "10.pt", tmp_path / "7.pt"]
    answer = call(evaluate_script, *files, "--data.name", "digits", "--out", tmp_path / "out", "--quiet")
    refused(answer, "7.pt: ", "expected logits (N, 10)")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("script", "settings"), [(train_astra, TINY), (train_rpat, UNTESTED)])
def test_a_run_goes_on_with_data_that_has_moved_and_remembers_where(tmp_path, call, script, settings):
    root, run = images(tmp_path / "data"), tmp_path / "run"
    assert call(script, *settings, "--run_dir", run, "--data.root", root)[0] == 0
    root.rename(tmp_path / "elsewhere")
    refused(call(script, "--resume", "--run_dir", run), str(root), "--data.root")
    assert call(script, "--resume", "--run_dir", run, "--data.root", tmp_path / "elsewhere")[0] == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["root"] == str(tmp_path / "elsewhere")
    assert call(script, "--resume", "--run_dir", run)[0] == 0


def test_a_run_with_a_relative_root_resumes_and_is_evaluated_from_another_folder(tmp_path, call, monkeypatch):
    images(tmp_path / "here" / "data")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert call(train_astra, *TINY, "--run_dir", "run", "--data.root", "data")[0] == 0
    monkeypatch.chdir(tmp_path / "there")
    run = os.path.relpath(tmp_path / "here" / "run")
    assert call(train_astra, "--resume", "--quiet", "--run_dir", run)[0] == 0
    assert call(evaluate_script, run, "--quiet", "--out", "found", "--head.epochs", "1", "--attack.steps", "1")[0] == 0


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, call, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(images(tmp_path / "data"))
    assert call(train_astra, *TINY, "--run_dir=~/run", "--data.root=~/data")[0] == 0
    assert (tmp_path / "run" / "summary.json").exists()
    assert call(evaluate_script, "~/run", "--quiet", "--out=~/out", "--head.epochs", "1", "--attack.steps", "1")[0] == 0
    assert (tmp_path / "out" / "results.json").exists()
    assert call(train_astra, "--resume", "--quiet", "--run_dir=~/run")[0] == 0
    rpat = [*RPAT, "--test.enabled", "false", "--data.root=~/data"]
    assert call(train_rpat, *rpat, "--run_dir=~/rpat")[0] == 0
    assert call(train_rpat, *rpat, "--run_dir=~/more", "--network.checkpoint=~/rpat")[0] == 2
    assert call(train_rpat, *rpat, "--run_dir=~/more", "--network.checkpoint=~/rpat/checkpoints/last.pt")[0] == 0
    assert not Path("~").exists()


def test_paths_of_a_configuration_are_absolute_and_names_are_not(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    args = {"teacher": "t.pt", "teacher_steps": 3}
    config = load_config(ExperimentConfig, "tiny", {"data.root": "../x", "learner.objective_args": args})
    assert config.data.root == str(tmp_path.parent / "x")
    assert config.learner.objective_args == {"teacher": str(tmp_path / "t.pt"), "teacher_steps": 3}
    with pytest.raises(ConfigError, match=r"data\.root: '~nobody_of_this_name/x' has no known home folder"):
        load_config(ExperimentConfig, "tiny", {"data.root": "~nobody_of_this_name/x"})
