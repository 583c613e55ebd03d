import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from astra_env.config.command_line import run_main
from astra_env.models import load_official, target_resnet18
from astra_env.storage.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_sb3", ROOT / "scripts" / "train_sb3.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["train_sb3.py", *arguments])
    return run_main(script.main)


def test_train_then_play(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert call(script, monkeypatch, "--config", "tiny", "--total_timesteps", "256", "--run_dir", run) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["timesteps"] == 256
    assert set(summary["mean_reward"]) == {"agent", "fixed", "random"}
    assert (tmp_path / "run" / "model.zip").is_file()
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))
    assert call(script, monkeypatch, "--play", "--run_dir", run) == 0
    assert "step 12 reward" in capsys.readouterr().out
    played = load_checkpoint(tmp_path / "run" / "played.pt")
    assert played["step"] == 12
    target = target_resnet18(width=4, blocks=(1, 1, 1, 1), feature_dim=16, hidden_dim=32)
    load_official(target, played)
    assert call(script, monkeypatch, "--resume", "--run_dir", run, "--quiet") == 0


def test_an_agent_trains_in_a_classifiers_training(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    overrides = json.dumps({"learner.kind": "rpat.under_policy.learner:StrategyLearner", "learner.total_steps": 2})
    run = str(tmp_path / "run")
    sizes = ("--num_envs", "9", "--total_timesteps", "36", "--evaluation.fixed_args.epsilon", "8/255")
    training = ("--experiment", "supervised_tiny", "--overrides", overrides)
    assert call(script, monkeypatch, "--config", "tiny", *training, *sizes, "--run_dir", run, "--quiet") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["timesteps"] == 36
    assert set(summary["mean_reward"]) == {"agent", "fixed", "random"}
    assert call(script, monkeypatch, "--play", "--run_dir", run) == 0
    assert load_checkpoint(tmp_path / "run" / "played.pt")["target"]["linear.weight"].shape == (10, 32)


def test_user_errors_are_one_line_and_exit_2(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        "run_dir": ["--config", "tiny"],
        "algo": ["--config", "tiny", "--algo", "dqn", "--run_dir", str(tmp_path / "a")],
        "no config.yaml": ["--play", "--run_dir", str(tmp_path / "b")],
        "tinny": ["--config", "tinny", "--run_dir", str(tmp_path / "c")],
    }
    for words, arguments in cases.items():
        assert call(script, monkeypatch, *arguments) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert words in message
        assert message.count("\n") == 1
