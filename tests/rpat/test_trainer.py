"""Whole runs on digits: learning, averaging, selection, resuming, loading back, the command line."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from astra_env.config.reading import load_config
from astra_env.errors import CheckpointError, ConfigError, DataError, Diverged, RunDirectoryError
from astra_env.evaluation import clean_accuracy
from astra_env.storage.checkpoint import load_checkpoint, save_checkpoint
from rpat import METHODS, RPATConfig, Trainer, load_network
from rpat.callbacks import Accuracies
from rpat.config import PRESET_PACKAGE

ROOT = Path(__file__).resolve().parents[2]
METHOD_NAMES = list(METHODS)


def trainer(**overrides):
    return Trainer("tiny", overrides)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def run_script(*arguments):
    spec = importlib.util.spec_from_file_location("train_rpat", ROOT / "scripts" / "train_rpat.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.run_main(lambda: script.main([str(argument) for argument in arguments]))


@pytest.mark.parametrize(("method", "perception"), [*((name, True) for name in METHOD_NAMES), ("rebat", False)])
def test_every_method_trains_and_is_measured(method, perception):
    summary = trainer(method=method, robust_perception=perception, epochs=1, **{"ema.start_epoch": 0}).fit()
    assert summary["finished"]
    assert summary["steps"] == 3
    assert summary["selected"] == ("ema" if method == "rebat" else "model")
    assert summary["test"]["clean"]["total"] == summary["test"]["pgd_3"]["total"] == 64


def test_training_teaches_digits_and_some_robustness():
    settings = {"data.max_images": 500, "validation.size": 50, "epochs": 6, "optimizer.milestones": [5]}
    summary = trainer(robust_perception=False, **settings).fit()
    assert summary["test"]["clean"]["accuracy"] > 0.5
    assert 0.2 < summary["test"]["pgd_3"]["accuracy"] <= summary["test"]["clean"]["accuracy"]


@pytest.mark.parametrize(("method", "steps"), [("pgd_at", 2), ("consistency", 4), ("rebat", 5), ("rebat", 3)])
def test_a_run_broken_off_anywhere_resumes_bit_for_bit(tmp_path, method, steps):
    published = {"method_args": {"attack_mode": "train"}} if steps == 5 else {}
    settings = {
        "method": method,
        **published,
        "drop_last": steps != 2,
        "augment.autoaugment": "second_half",
        "epochs": 2,
        "test.enabled": False,
    }
    whole = trainer(**settings)
    whole.fit(tmp_path / "whole")

    broken, original = trainer(**settings), None
    original = broken.learner.step

    def stop_after():
        terms = original()
        if broken.learner.step_count == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return terms

    broken.learner.step = stop_after
    summary = broken.fit(tmp_path / "broken")
    assert not summary["finished"]
    assert (summary["steps"], broken.exit_status) == (steps, 128 + signal.SIGTERM)
    resumed = trainer(**settings)
    resumed.fit(tmp_path / "broken", resume=True)

    states = [load_checkpoint(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "broken")]
    assert same(states[0]["model"], states[1]["model"])
    assert (states[0]["ema"] is None) == (method != "rebat")
    assert states[0]["ema"] is None or same(states[0]["ema"], states[1]["ema"])
    assert states[0]["selection"] == states[1]["selection"]
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "broken")]
    assert metrics[0] == metrics[1]


def test_average_is_an_exponential_mean_of_weights_and_batch_norm_statistics_from_its_start_epoch():
    run = trainer(**{"ema.enabled": True, "ema.start_epoch": 1, "ema.decay": 0.9})
    learner = run.learner
    for _ in range(3):
        learner.step()
    assert learner.average is None
    expected = {name: value.clone() for name, value in learner.model.state_dict().items()}
    for _ in range(2):
        learner.step()
        for name, value in learner.model.state_dict().items():
            expected[name] = 0.9 * expected[name] + 0.1 * value
    averaged = learner.average.module.state_dict()
    for name in ("conv1.weight", "bn1.running_mean", "layer4.1.bn2.running_var", "linear.bias"):
        assert torch.allclose(averaged[name], expected[name], atol=1e-6), name


def test_the_average_takes_the_statistics_that_the_pass_after_the_update_leaves():
    settings = {"method": "rebat", "method_args": {"attack_mode": "train"}, "ema.start_epoch": 0, "ema.decay": 0.9}
    learner = trainer(**settings).learner
    before = learner.model.bn1.running_mean.clone()
    learner.step()
    assert int(learner.model.bn1.num_batches_tracked) == 2 + 1 + 1 + 1
    mean = learner.average.module.bn1.running_mean
    assert torch.allclose(mean, 0.9 * before + 0.1 * learner.model.bn1.running_mean, atol=1e-7)


def test_fast_runs_do_without_a_folded_copy_when_the_attack_is_in_training_mode():
    settings = {"method": "rebat", "ema.start_epoch": 0, "learner.fast": True, "learner.precision": "fp32"}
    folded = trainer(**settings).learner
    unfolded = trainer(**settings, method_args={"attack_mode": "train"}).learner
    assert folded.speed.fold_batchnorm
    assert not unfolded.speed.fold_batchnorm
    assert "loss" in unfolded.step()


def test_an_epoch_that_keeps_its_last_batch_trains_on_every_image():
    run = trainer(drop_last=False, **{"data.max_images": 110, "validation.size": 30, "batch_size": 32, "epochs": 2})
    sizes = []
    run.learner.model.register_forward_hook(
        lambda module, inputs, output: sizes.append(len(inputs[0])) if module.training else None
    )
    summary = run.fit()
    assert summary["steps"] == 6
    assert sizes[::3] == [32, 32, 16] * 2
    dropped = trainer(**{"data.max_images": 110, "validation.size": 30, "batch_size": 32, "epochs": 2})
    assert dropped.learner.total_steps == 4
    with pytest.raises(ConfigError, match="drop_last: the last batch of an epoch would have 1 of the 33 images"):
        trainer(drop_last=False, **{"data.max_images": 63, "validation.size": 30, "batch_size": 32})


def test_learning_rate_robust_perception_and_attack_follow_the_epoch():
    run = trainer(epochs=3, rp_start_epoch=1, **{"optimizer.milestones": [2], "optimizer.factor": 0.5})
    rates, names = [], []
    for _ in range(9):
        names.append("loss_robust_perception" in run.learner.step())
        rates.append(run.learner.optimizer.param_groups[0]["lr"])
    assert names == [False] * 3 + [True] * 6
    assert rates == pytest.approx([0.05] * 6 + [0.025] * 3)


def test_logged_loss_is_the_sum_of_its_logged_terms(tmp_path):
    trainer(method="trades").fit(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if "train/loss" in line]
    for line in training:
        parts = [line[f"train/loss_{name}"] for name in ("cross_entropy", "divergence", "robust_perception")]
        assert line["train/loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert len([line for line in lines if "validation/robust_accuracy" in line]) == 2


def test_run_directory_holds_last_best_and_averaged_weights_that_load_back(tmp_path):
    run = trainer(method="rebat")
    summary = run.fit(tmp_path / "run")
    folder = tmp_path / "run"
    last = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    assert same(last["ema"], run.learner.average.module.state_dict())
    files = {"config.yaml", "metrics.jsonl", "summary.json", "losses.png"}
    assert files <= {path.name for path in folder.iterdir()}
    assert list(folder.glob("events.*"))
    assert json.loads((folder / "summary.json").read_text()) == summary
    for weights, name in (("best", "model"), ("ema_best", "ema")):
        network, config = load_network(folder, weights)
        assert config.method == "rebat"
        found = clean_accuracy(network, run.validation).value
        assert found == summary["best_validation"][name]["clean_accuracy"]
    assert same(load_network(folder, "ema")[0].state_dict(), last["ema"])
    with pytest.raises(ConfigError, match="weights: expected one of best, last, ema, ema_best, got 'first'"):
        load_network(folder, "first")


def test_the_figure_of_a_run_shows_its_losses_by_step_and_its_validation_by_epoch():
    from astra_env.plotting.training import supervised_figure

    losses, validation = supervised_figure(
        [
            {"step": 4, "epoch": 0, "train/loss": 2.5, "train/logit_spread": 1.0, "learning_rate": 0.1},
            {"step": 4, "epoch": 0, "validation/robust_accuracy": 0.25, "validation_ema/robust_accuracy": 0.5},
            {"step": 8, "epoch": 1, "train/loss": 2.0, "train/logit_spread": 1.5, "learning_rate": 0.1},
        ]
    ).axes
    assert [(line.get_label(), line.get_xydata().tolist()) for line in losses.lines] == [("loss", [[4, 2.5], [8, 2.0]])]
    assert [(line.get_label(), line.get_xydata().tolist()) for line in validation.lines] == [
        ("robust accuracy", [[0, 25.0]]),
        ("average: robust accuracy", [[0, 50.0]]),
    ]


def test_best_weights_are_chosen_on_images_held_out_of_training():
    run = trainer(**{"data.max_images": 300, "validation.size": 40})
    learner, validation, test = run.learner, run.validation, run.test
    assert (len(learner.train), len(validation), len(test)) == (260, 40, 360)
    seen = {bytes(image.numpy()) for image in learner.train.images}
    held_out = [bytes(image.numpy()) in seen for image in validation.images]
    assert sum(held_out) < 5, "digits repeat a little, a slice taken from training would repeat wholly"


def test_selection_prefers_robust_then_clean_accuracy_and_the_earlier_epoch(tmp_path):
    from rpat.selection import Record, Selection

    keeper = Selection(tmp_path, 4)
    offers = [Record(0, 0.3, 0.9), Record(1, 0.4, 0.5), Record(2, 0.4, 0.6), Record(3, 0.4, 0.6), Record(4, 0.2, 1.0)]
    kept = [keeper.offer("model", record, {"w": torch.tensor(record.epoch)}) for record in offers]
    assert kept == [True, True, True, False, False]
    assert int(keeper.weights("model")["w"]) == 2
    with pytest.raises(CheckpointError, match="ema: no validated weights"):
        keeper.weights("ema")


def test_training_starts_from_our_own_or_an_official_checkpoint(tmp_path):
    run = trainer()
    state = run.learner.model.state_dict()
    save_checkpoint(tmp_path / "weights.pt", {"state_dict": {f"module.{name}": 0.5 * t for name, t in state.items()}})
    loaded = trainer(**{"network.checkpoint": str(tmp_path / "weights.pt")}).learner.model.state_dict()
    assert torch.equal(loaded["conv1.weight"], 0.5 * state["conv1.weight"])
    with pytest.raises(CheckpointError, match="does not fit"):
        trainer(**{"network.checkpoint": str(tmp_path / "weights.pt"), "network.width": 6})


def test_normalisation_uses_the_training_images_statistics_inside_the_network():
    learner = trainer(**{"network.normalize": "data"}).learner
    pixels = learner.train.images.double().div(255).transpose(0, 1).flatten(1)
    assert learner.model.normalize.mean.double() == pytest.approx(pixels.mean(1), rel=1e-5)
    assert learner.model.normalize.std.double() == pytest.approx(pixels.std(1), rel=1e-3)
    constants = trainer(**{"network.normalize": "cifar10"}).learner.model.normalize
    assert constants.mean.flatten().tolist() == pytest.approx([0.4914, 0.4822, 0.4465])
    assert constants.std.flatten().tolist() == pytest.approx([0.2471, 0.2435, 0.2616])


def test_labels_that_have_no_logit_and_images_without_label_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"network.num_classes: 'digits' has labels 0\.\.9, got 4 logits.*raise it"):
        trainer(**{"network.num_classes": 4})
    with pytest.raises(DataError, match="images have no label"):
        trainer(**{"data.name": f"{__name__}:unlabelled"})


def unlabelled(request):
    from astra_env.data import load_dataset
    from astra_env.data.dataset import ImageDataset

    digits = load_dataset("digits", request.split, image_size=8)
    labels = digits.labels.clone()
    labels[0] = -1
    return ImageDataset("mine", request.split, digits.images, labels, digits.classes)


def test_divergence_stops_before_the_weights_are_spoilt():
    run = trainer(**{"optimizer.learning_rate": 1e8})
    with pytest.raises(Diverged, match=r"training diverged at step \d+: the loss is .*lower optimizer.learning_rate"):
        run.fit()


def test_mixed_precision_and_memory_format_train_too():
    summary = trainer(
        **{"learner.precision": "bf16", "learner.channels_last": True, "epochs": 1, "ema.enabled": False}
    ).fit()
    assert summary["finished"]


def test_validating_network_and_average_costs_less_than_a_tenth_of_an_epoch_of_cifar10():
    run, passes = trainer(**{"validation.steps": 10}), []
    run.learner.model.register_forward_hook(
        lambda module, inputs, output: passes.append(len(inputs[0]) * (2 if torch.is_grad_enabled() else 1))
    )
    (accuracies,) = (callback for callback in run.callbacks if isinstance(callback, Accuracies))
    accuracies.validate(run, 0)
    per_image = sum(passes) / len(run.validation)
    assert per_image == 22
    step, train_images, networks, size = 29, 49_000, 2, load_preset("cifar10_linf").validation.size
    assert networks * size * per_image / (step * train_images) < 0.1


def load_preset(name):
    return load_config(RPATConfig, name, package=PRESET_PACKAGE)


def test_importing_the_package_is_light_and_offers_the_trainer():
    code = "import sys, rpat; heavy = {'torch', 'torchvision', 'matplotlib'} & set(sys.modules); print(heavy)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_command_line_runs_resumes_and_prints_the_resolved_configuration(tmp_path, capsys):
    folder = tmp_path / "run"
    options = ("--config", "tiny", "--run_dir", folder, "--method", "trades", "--rp_weight", 0.5)
    assert run_script(*options) == 0
    assert "trades finished" in capsys.readouterr().out
    assert run_script("--run_dir", folder, "--resume") == 0
    assert run_script(*options, "--print_config") == 0
    printed = capsys.readouterr().out
    assert "rp_weight: 0.5" in printed
    assert "epochs: 2" in printed
    assert "factor: 0.1" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "fgsm"), "error: method: expected one of"),
        (("--epsilon", "8"), "error: epsilon: expected a number in [0, 1] pixel units, got 8; in 0-255 units"),
        (("--rp_start_epoch", "7"), "error: rp_start_epoch: expected 0..1 in a run of 2 epochs, got 7"),
        (("--method", "rebat", "--ema.start_epoch", "2"), "error: ema.start_epoch: expected 0..1"),
        (("--resume",), "error: run_dir: --resume needs the --run_dir"),
        (("--batch_size", "many"), "error: batch_size: "),
    ],
)
def test_command_line_tells_bad_input_in_one_line_and_exits_with_two(options, message, capsys):
    assert run_script("--config", "tiny", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_command_line_warns_in_one_line_once(tmp_path, capsys):
    options = ("--config", "tiny", "--step_size", "9/255", "--epochs", 1, "--optimizer.milestones", "[]")
    assert run_script(*options, "--ema.enabled", "false", "--run_dir", tmp_path) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "step_size" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: step_size: 9/255 is larger than epsilon 8/255")


def test_runs_meet_in_one_trade_off_figure(tmp_path):
    from rpat.tradeoff import plot_runs, read_points

    folders = [tmp_path / name for name in ("plain", "perceptive")]
    for folder, perception in zip(folders, (False, True), strict=True):
        summary = trainer(epochs=1, robust_perception=perception).fit(folder)
    points = read_points(folders)
    assert [(point.name, point.group, point.filled) for point in points] == [
        ("plain", "pgd_at", False),
        ("perceptive", "pgd_at", True),
    ]
    assert points[1].clean == summary["test"]["clean"]["accuracy"]
    assert points[1].robust == summary["test"]["pgd_3"]["accuracy"]
    assert plot_runs(folders, tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(DataError, match="holds no finished, tested run"):
        read_points([tmp_path])


def test_an_occupied_run_directory_is_not_overwritten(tmp_path):
    trainer(epochs=1, **{"ema.enabled": False}).fit(tmp_path)
    with pytest.raises(RunDirectoryError, match="already holds a run"):
        trainer(epochs=1, **{"ema.enabled": False}).fit(tmp_path)
