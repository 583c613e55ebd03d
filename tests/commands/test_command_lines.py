"""train_astra.py and compare.py as a user meets them: exit statuses, one-line errors, nothing half-written."""

import json
import sys

import pytest
from PIL import Image

import agents
from astra_env.commands import compare
from astra_env.commands import train as train_astra
from astra_env.config.command_line import run_main
from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.objectives import objective_factory
from astra_env.strategy import StrategySpace

TINY = ["--config", "tiny", "--quiet", "--learner.total_steps", "2", "--probe.enabled", "false"]


def run(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
    return run_main(script.main)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--learner.batch", "4"], ["--learner.batch"]),
        (["--learner.batch_size", "many"], ["learner.batch_size", "int", "many"]),
        (["--learner.batch_size", "7"], ["learner.batch_size", "even integer >= 4", "7"]),
        (["--learner.batch_size", "2"], ["learner.batch_size", "even integer >= 4", "2"]),
        (["--learner.batch_size", "2000"], ["learner.batch_size", "2000", "fewer than one batch"]),
        (["--strategy.epsilon", "[]"], ["strategy.epsilon", "non-empty"]),
        (["--strategy.epsilon", "[8]"], ["strategy.epsilon", "[0, 1]", "8/255"]),
        (["--data.name", "cifar10", "--data.root", "nowhere"], ["nowhere", "--data.download true"]),
        (["--data.name", "imagenet21k"], ["imagenet21k", "cifar10"]),
        (["--policy", "clever"], ["policy", "clever", "reinforce"]),
        (["--policy", "no_such_module:Policy"], ["no_such_module"]),
        (["--learner.reward", "money"], ["learner.reward", "money", "per_view"]),
        (["--device", "cuda:99"], ["device", "cuda:99"]),
        (["--track"], ["astra-env[wandb]"]),
    ],
)
def test_bad_input_gets_one_line_exit_status_2_and_leaves_nothing(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, train_astra, *TINY, "--run_dir", "run", *arguments) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ")
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message
    assert not (tmp_path / "run").exists()


def folder_of_images(root, count=16):
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            directory = root / split / label
            directory.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (8, 8), (index, 0, 99)).save(directory / f"{index}.png")
    return root


@pytest.mark.parametrize("damage", ["truncated", "text"])
def test_a_damaged_image_is_named(tmp_path, monkeypatch, capsys, damage):
    root = folder_of_images(tmp_path / "images")
    victim = root / "train" / "cat" / "3.png"
    victim.write_bytes(victim.read_bytes()[:40] if damage == "truncated" else b"not an image")
    arguments = ["--data.name", "folder", "--data.root", root, "--data.image_size", "8"]
    assert run(monkeypatch, train_astra, *TINY, "--run_dir", tmp_path / "run", *arguments) == 2
    assert "train/cat/3.png" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_from_a_folder_can_be_repeated_from_its_own_configuration(tmp_path, monkeypatch, capsys):
    root = folder_of_images(tmp_path / "images")
    arguments = ["--data.name", "folder", "--data.root", root, "--data.image_size", "8", "--data.max_images", "null"]
    arguments += ["--probe.enabled", "true", "--probe.epochs", "1", "--probe.steps", "2"]
    assert run(monkeypatch, train_astra, *TINY, "--run_dir", tmp_path / "first", *arguments) == 0
    printed = capsys.readouterr()
    assert "2 steps" in printed.out
    assert printed.err == "", "--quiet, so no bar, not even while the images of both splits are decoded"
    again = ["--config", tmp_path / "first" / "config.yaml", "--quiet", "--run_dir", tmp_path / "second"]
    assert run(monkeypatch, train_astra, *again) == 0
    assert (tmp_path / "first/metrics.jsonl").read_text() == (tmp_path / "second/metrics.jsonl").read_text()


def test_occupied_missing_and_unnamed_run_directories(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, train_astra, *TINY, "--run_dir", tmp_path / "run") == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    assert run(monkeypatch, train_astra, *TINY, "--run_dir", tmp_path / "run") == 2
    assert "--resume" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    assert run(monkeypatch, train_astra, "--resume", "--run_dir", tmp_path / "nowhere") == 2
    assert "start one without --resume" in capsys.readouterr().err
    assert run(monkeypatch, train_astra, *TINY) == 2
    assert "--run_dir" in capsys.readouterr().err


def test_compare_trains_each_variant_once_and_writes_a_table(tmp_path, monkeypatch, capsys):
    arguments = [
        "--config", "tiny", "--quiet", "--run_dir", tmp_path, "--learner.total_steps", "3", "--seeds", "0", "1",
        "--variants", "no_attack", "fixed", "learned", "--strategy.steps", "[5]", "--policy_args.width", "4",
    ]  # fmt: skip
    arguments += ["--strategy.epsilon", "[8/255]", "--strategy.step_size", "[2/255]"]
    assert run(monkeypatch, compare, *arguments) == 0
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert list(record["results"]) == ["no_attack", "fixed", "learned"]
    accuracies = [
        json.loads((tmp_path / f"fixed-seed{seed}" / "summary.json").read_text())["probe"]["clean"]["accuracy"]
        for seed in (0, 1)
    ]
    assert record["results"]["fixed"]["clean"]["values"] == [100 * value for value in accuracies]
    assert record["results"]["fixed"]["clean"]["mean"] == pytest.approx(50 * sum(accuracies))
    assert record["results"]["fixed"]["final_mean_steps"]["mean"] == 5
    assert "final_mean_steps" not in record["results"]["no_attack"]
    assert (tmp_path / "comparison.png").stat().st_size > 1000
    assert "| fixed |" in capsys.readouterr().out
    written = (tmp_path / "fixed-seed0" / "summary.json").stat().st_mtime_ns
    assert run(monkeypatch, compare, *arguments) == 0
    assert (tmp_path / "fixed-seed0" / "summary.json").stat().st_mtime_ns == written
    assert run(monkeypatch, compare, *arguments[:-6], "--variants", "magic") == 2
    assert "expected some of no_attack" in capsys.readouterr().err


def test_compare_at_equal_attack_budgets_trains_weaker_attacks_longer_and_says_what_was_spent(
    tmp_path, monkeypatch, capsys
):
    arguments = [
        "--config", "tiny", "--quiet", "--run_dir", tmp_path, "--learner.total_steps", "5", "--equal_attack_steps",
        "--variants", "no_attack", "acl", "fixed_9", "--strategy.steps", "[5,9]", "--probe.epochs", "1",
        "--strategy.epsilon", "[8/255]", "--strategy.step_size", "[2/255]", "--probe.steps", "1",
    ]  # fmt: skip
    assert run(monkeypatch, compare, *arguments) == 0
    rows = json.loads((tmp_path / "comparison.json").read_text())["results"]
    assert [rows[name]["total_steps"]["mean"] for name in ("no_attack", "acl", "fixed_9")] == [5, 7, 4]
    assert [rows[name]["attack_steps"]["mean"] for name in ("no_attack", "acl", "fixed_9")] == [0, 35, 36]
    assert "attack steps per view" in capsys.readouterr().out
    assert run(monkeypatch, compare, *arguments, "--target.width", "8") == 2
    assert "was trained with other settings" in capsys.readouterr().err


def test_every_variant_of_the_comparison_is_a_configuration():
    base = load_config(ExperimentConfig, "quickstart")
    for name in compare.VARIANTS:
        config = compare.variant_config(base, name, seed=7)
        assert config.seed == 7
        objective_factory(config)
        space = StrategySpace(config.strategy.epsilon, config.strategy.steps, config.strategy.step_size)
        agents.make(config.policy, context=agents.Context(space), **config.policy_args)
    assert set().union(*compare.SUITES.values()) <= set(compare.VARIANTS)
    assert compare.variant_config(base, "rocl_astra", 0).policy == "reinforce"
