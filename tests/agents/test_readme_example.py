"""The README's own policy, exactly as printed there."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import agents
from agents import Context
from astra_env.config.command_line import run_main
from astra_env.envs import InstanceAttackStrategyVectorEnv, play
from astra_env.storage.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def my_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write the example where Python finds it; returns its name."""
    block = re.search(r"```python\n# my_policy\.py\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None, "README.md shows no my_policy.py"
    assert len(block[1].strip().splitlines()) <= 32
    (tmp_path / "my_policy.py").write_text(block[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_policy:Bandit"
    sys.modules.pop("my_policy", None)


def test_it_trains_and_is_saved_in_the_training_script(
    my_policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("train_astra", ROOT / "scripts" / "train_astra.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    arguments = ["--config", "tiny", "--policy", my_policy, "--policy_args", "{}", "--run_dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train_astra.py", *arguments, "--probe.enabled", "false", "--quiet"])
    assert run_main(script.main) == 0
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert np.sum(state["policy"]["count"]) == 12 * 32  # every view of every step


def test_it_finds_a_strong_attack_in_the_environment(my_policy: str) -> None:
    env = InstanceAttackStrategyVectorEnv(32, "tiny", autoreset_mode="next_step")
    bandit = agents.make(my_policy, context=Context(env.space), explore=1.0)
    for seed in range(2):
        play(env, bandit, seed=seed, learn=True)
    best, _ = bandit.predict(np.zeros((1, 3, 8, 8), np.uint8), deterministic=True)
    assert best[0, 1] + best[0, 2] >= 2  # two or three steps of the longer size, or all three
    twin = agents.make(my_policy, context=Context(env.space))
    twin.load_state_dict(bandit.state_dict())
    assert np.array_equal(twin.predict(np.zeros((1, 3, 8, 8), np.uint8), deterministic=True)[0], best)
