"""The speed model: operations of the attack and of the step, counted; the plain step gives the same numbers."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from astra_env.benchmarking.measure import Contestant, compare, matmul_ceiling
from astra_env.config import ExperimentConfig
from astra_env.data import load_dataset

SMALL = {
    "device": "cpu",
    "target.width": 8,
    "target.blocks": [1, 1, 1, 1],
    "target.feature_dim": 16,
    "target.hidden_dim": 32,
    "learner.batch_size": 4,
    "learner.warmup_epochs": 0,
}
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", image_size=16)


@pytest.mark.parametrize("budgets", ["uniform", "fixed", "max"])
def test_cost_is_two_forwards_per_own_step_one_for_the_reward_and_six_for_training(digits, budgets):
    counts = Contestant("exact", SMALL, digits, budgets).forward_equivalents()
    attack = 2 * counts["mean_steps"] + 1
    assert counts["attack"] == pytest.approx(attack, rel=0.05)
    assert counts["step"] == pytest.approx(attack + 1 + 6, rel=0.05)


def test_the_plain_step_costs_three_forwards_for_every_step_of_the_slowest_view(digits):
    counts = Contestant("plain", SMALL, digits, "max").forward_equivalents()
    assert counts["attack"] == pytest.approx(3 * 14 + 1, rel=0.05)
    assert counts["step"] == pytest.approx(3 * 14 + 1 + 1 + 6, rel=0.05)


def test_the_plain_step_gives_the_same_numbers(digits):
    plain, exact = (Contestant(mode, SMALL, digits, "uniform") for mode in ("plain", "exact"))
    reports = [contestant.learner.step(contestant._strategy()) for contestant in (plain, exact)]
    same = (reports[0].adversarial - reports[1].adversarial).abs() < 1e-6
    assert same.float().mean() > 0.98
    for name in ("loss", "grad_norm"):
        torch.testing.assert_close(reports[0].terms[name], reports[1].terms[name], rtol=5e-3, atol=0)
    for mine, theirs in zip(plain.learner.target.parameters(), exact.learner.target.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-2)


def test_the_comparison_reports_every_mode(digits):
    results = compare(["plain", "exact", "fast"], SMALL, digits, "uniform", repeats=1)
    assert list(results) == ["plain", "exact", "fast"]
    for entry in results.values():
        milliseconds = entry["milliseconds"]
        parts = sum(time for phase, time in milliseconds.items() if phase != "step")
        assert 0 < parts <= milliseconds["step"] * 1.05
        assert entry["saved_bytes_per_view"] > 0
    assert results["plain"]["step_speedup"] == 1
    assert results["fast"]["saved_bytes_per_view"] < results["exact"]["saved_bytes_per_view"]


def test_the_ceiling_is_a_rate():
    assert matmul_ceiling(torch.device("cpu"), torch.float32, size=128, repeats=1) > 1e6


@pytest.mark.parametrize("module", ["astra_env", "agents.sb3.config", "astra_env.config"])
def test_light_modules_stay_light(module):
    heavy = "{'torch', 'torchvision', 'matplotlib', 'stable_baselines3', 'sklearn'}"
    if module == "agents.sb3.config":
        heavy = "{'torchvision', 'matplotlib', 'stable_baselines3', 'sklearn'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert output.strip() == "[]"


def test_help_needs_no_torch():
    code = (
        "import sys, runpy; sys.argv = ['train_astra.py', '--help']\n"
        "try: runpy.run_path('scripts/train_astra.py', run_name='__main__')\n"
        "except SystemExit as done: assert not done.code, done.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    environment = {"PYTHONPATH": "scripts", "PATH": "/usr/bin:/bin"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr[-500:]
    assert "--learner.batch_size" in result.stdout
    assert ExperimentConfig().learner.batch_size == 512
