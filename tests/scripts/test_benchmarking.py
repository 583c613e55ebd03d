"""The speed model: operations of the attack and of the step, counted; the plain step gives the same numbers."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarking.clock import PHASES
from benchmarking.measure import Contestant, compare, matmul_ceiling
from benchmarking.memory import model_of_memory, saved_bytes
from benchmarking.probing import measure

from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.data import load_dataset
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.plotting.benchmark import plot_curve

SMALL = {
    "device": "cpu",
    "target.width": 8,
    "target.blocks": [1, 1, 1, 1],
    "target.feature_dim": 16,
    "target.hidden_dim": 32,
    "learner.batch_size": 4,
    "learner.warmup_epochs": 0,
}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", image_size=16)


@pytest.mark.parametrize(
    ("mode", "budgets"), [("exact", "uniform"), ("exact", "fixed"), ("exact", "max"), ("fast", "uniform")]
)
def test_cost_is_two_forwards_per_own_step_one_for_the_reward_and_six_for_training(digits, mode, budgets):
    counts = Contestant(mode, SMALL, digits, budgets).forward_equivalents()
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
    ceilings = {"fp32": 1e12, "bf16": 1e12}
    results = compare(["plain", "fast"], SMALL, digits, "uniform", repeats=1, ceilings=ceilings)
    assert list(results) == ["plain", "fast"]
    for entry in results.values():
        milliseconds = entry["milliseconds"]
        parts = sum(time for phase, time in milliseconds.items() if phase != "step")
        assert 0 < parts <= milliseconds["step"] * 1.05
        assert all(milliseconds[phase] > 0 for phase in PHASES)
        assert entry["data_share"] == pytest.approx(
            (milliseconds["load"] + milliseconds["augment"]) / milliseconds["step"]
        )
        assert entry["attack_percent_of_ceiling"] == pytest.approx(entry["attack_flops_per_second"] / 1e10)
        assert entry["hours_for_1000_epochs_of_cifar10"] == pytest.approx(
            1000 * 97 * 1024 / entry["views_per_second"] / 3600
        )
    assert results["plain"]["step_speedup"] == 1


def test_saved_bytes_count_each_storage_once_and_leave_out_what_exists_anyway():
    weight = torch.ones(4, 4, requires_grad=True)
    x = torch.ones(8, 4, requires_grad=True)
    # x @ weight keeps x (and weight), the product with itself keeps its 8 x 4 output once.
    work = lambda: (x @ weight).square().sum()  # noqa: E731
    assert saved_bytes(work, [weight]) == 4 * (8 * 4 + 8 * 4)
    assert saved_bytes(work) == 4 * (8 * 4 + 8 * 4 + 4 * 4)


def test_memory_grows_with_the_views_and_bf16_needs_less(digits):
    def model(views, **overrides):
        config = load_config(ExperimentConfig, "cifar10", {**SMALL, **overrides})
        return model_of_memory(ContrastiveLearner(config, digits), views)

    small, large = model(64), model(128)
    assert large["activations"] == 2 * small["activations"]
    assert small["activations"] == 64 * max(small["training_per_view"], small["attack_per_view"])
    assert large["similarities"] == 4 * small["similarities"] == 9 * 6 * 128**2
    assert large["weights_gradients_momentum"] == small["weights_gradients_momentum"]
    parts = ("weights_gradients_momentum", "weight_copies", "activations", "similarities", "images")
    assert small["peak"] == sum(small[part] for part in parts)
    # Clean and adversarial views are trained on together; the attack keeps no weight gradients' inputs, nor both.
    assert small["attack_per_view"] < small["training_per_view"]
    fast = model(64, **{"learner.precision": "bf16", "learner.fold_batchnorm": True})
    assert fast["activations"] < 0.8 * small["activations"]
    assert fast["weight_copies"] > 0
    assert fast["attack_per_view"] < 0.6 * small["attack_per_view"]


def test_the_curve_is_drawn(tmp_path):
    entry = {"milliseconds": {"step": 100.0}}
    figure = plot_curve({16: {"exact": entry}, 8: {"exact": entry}}, tmp_path / "curve.png")
    assert figure.stat().st_size > 1000


def test_the_ceiling_is_a_rate():
    assert matmul_ceiling(torch.device("cpu"), torch.float32, size=128, repeats=1) > 1e6


@pytest.mark.parametrize("module", ["astra_env", "agents.sb3.config", "astra_env.config.schema"])
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


def run_script(monkeypatch, *arguments):
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "scripts" / "benchmark.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    return script.run_main(script.main)


def test_the_script_writes_what_it_prints(monkeypatch, tmp_path, capsys):
    path = tmp_path / "memory.json"
    small = ["--width", "4", "--batch_size", "4", "--image_size", "8", "--device", "cpu", "--quiet"]
    assert run_script(monkeypatch, "--what", "memory", "--modes", "exact", *small, "--output", str(path)) == 0
    record = json.loads(path.read_text())
    assert record["views"] == 1024
    assert record["memory"]["exact"]["peak"] > record["memory"]["exact"]["activations"]
    assert f"{record['memory']['exact']['peak'] / 1e6:.2f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--what", "everything", "astra, rpat, evaluation, memory"),
        ("--modes", "faster", "plain, exact"),
        ("--policy", "none", "uniform, fixed, max"),
        ("--model", "vgg", "resnet18, resnet34"),
        ("--autoattack", "long", "quick, standard"),
    ],
)
def test_the_script_names_what_it_cannot_use(monkeypatch, capsys, option, value, allowed):
    assert run_script(monkeypatch, option, value) == 2
    assert f"{option[2:]}: expected one of {allowed}" in capsys.readouterr().err


def test_the_probing_benchmark_times_the_default_recipe_on_features_of_the_size_asked_for():
    found = measure(images=40, dimensions=20, epochs=2)
    assert (found["features"], found["epochs"], found["batch_size"]) == ([40, 20], 2, 512)
    assert found["seconds"] > 0
