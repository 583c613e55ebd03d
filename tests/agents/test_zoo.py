import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import yaml

pytest.importorskip("rl_zoo3")
NAME = "astra_env/AttackStrategy-v0"
FILES = resources.files("agents") / "rl_zoo3"


def zoo(folder: Path, module: str, *arguments: str) -> str:
    common = ["--algo", "ppo", "--env", NAME, "--gym-packages", "astra_env", "-f", "logs", "--device", "cpu"]
    command = [sys.executable, "-m", f"rl_zoo3.{module}", *common, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_rl_zoo3_trains_and_enjoys_without_a_patch(tmp_path: Path) -> None:
    conf = str(FILES / "ppo.yml")
    tiny = ["--env-kwargs", "config:'tiny'", "--n-timesteps", "12", "--eval-freq", "-1", "--conf-file", conf]
    trained = zoo(tmp_path, "train", *tiny, "-params", "n_steps:6", "batch_size:6", "n_epochs:1")
    assert "total_timesteps | 12" in " ".join(trained.split())
    enjoyed = zoo(tmp_path, "enjoy", "--no-render", "-n", "6")
    assert "Episode Length 6" in enjoyed


@pytest.mark.parametrize("algo", ["ppo", "a2c", "trpo", "dqn"])
def test_hyperparameter_files_name_the_environment(algo: str) -> None:
    values = yaml.safe_load((FILES / f"{algo}.yml").read_text())
    assert values[NAME]["policy"] == "MlpPolicy"
    assert (algo == "dqn") == ("env_wrapper" in values[NAME])
