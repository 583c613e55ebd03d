"""Semi-supervised evaluations: an honest report, kept classifiers, exact continuation after a kill, bad settings."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from random_weights import randomized

from astra_env.config.reading import load_config
from astra_env.data import load_dataset
from astra_env.errors import ConfigError
from astra_env.evaluation import clean_accuracy
from astra_env.evaluation.campaign.config import EvaluationConfig
from astra_env.evaluation.campaign.heads import restored_classifier
from astra_env.evaluation.campaign.loading import load_network
from astra_env.evaluation.campaign.report import markdown
from astra_env.evaluation.campaign.runner import conditions_of, evaluate
from astra_env.models import target_resnet18
from astra_env.storage.checkpoint import load_checkpoint, save_checkpoint

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

QUICK = {
    "protocol": "semi_supervised",
    "label_fraction": 0.2,
    "data.max_test_images": 60,
    "head.augment": False,
    "attack.steps": 2,
    "semi_supervised.standard_epochs": 2,
    "semi_supervised.epochs": 2,
    "semi_supervised.attack_steps": 1,
}


def config(**changes):
    return load_config(EvaluationConfig, None, {**QUICK, **changes}, package="astra_env.evaluation.campaign.presets")


def write_run(folder):
    target = randomized(target_resnet18(width=4, blocks=(1, 1), feature_dim=6, hidden_dim=8))
    save_checkpoint(folder / "checkpoints" / "last.pt", {"target": target.state_dict(), "step": 10})
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"name": "digits", "root": "data", "image_size": 8}}))
    return folder


def test_an_evaluation_says_what_was_done_and_keeps_the_classifier(tmp_path):
    run = write_run(tmp_path / "first")
    found = evaluate(config(), [run], tmp_path / "out")
    record = found["networks"]["first"]
    training = record["training"]
    report = markdown(found)
    assert "| first | semi_supervised | 60 |" in report
    assert f"on {training['labelled']} labelled images, 2 epochs" in report
    assert f"pseudo-labels of {training['pseudo_labelled']} others" in report
    assert f"{100 * training['pseudo_labels']['accuracy']:.2f} % right" in report
    assert f"{training['held_out']} held-out training images chose epoch" in report
    assert "- PGD-2 linf 8/255: 2 steps of 2/255, 1 random start in the ball" in report
    (kept,) = (tmp_path / "out" / "models").iterdir()
    assert [kept.name.startswith("first-semi_supervised-"), kept.suffixes] == [True, [".pt"]]
    classifier = restored_classifier(kept, load_network(run))
    test = load_dataset("digits", "test", image_size=8)
    assert clean_accuracy(classifier, test, max_images=60).correct == record["measurements"]["clean"]["correct"]
    stamp = kept.stat().st_mtime_ns
    evaluate(config(curves=["noise"]), [run], tmp_path / "out")
    assert kept.stat().st_mtime_ns == stamp


def test_fine_tuning_on_a_fraction_of_labels_is_called_that(tmp_path):
    run = write_run(tmp_path / "first")
    changes = {"protocol": "slf", "label_fraction": 0.5, "head.epochs": 1, "attack.step_size": None}
    report = markdown(evaluate(config(**changes), [run], tmp_path / "out"))
    assert "- first: slf on 50 % of the labels (" in report
    assert "no others used" in report
    assert "semi" not in report
    assert "- PGD-2 linf 8/255: 2 steps of 10/255, 1 random start in the ball" in report


def test_results_from_before_the_protocol_are_continued(tmp_path):
    settings = config(protocol="slf", **{"head.epochs": 1})
    assert "semi_supervised" not in conditions_of(settings, False)
    assert "semi_supervised" in conditions_of(config(), False)


def test_measurements_of_a_classifier_trained_in_another_way_are_not_continued(tmp_path):
    run = write_run(tmp_path / "first")
    settings = config(protocol="aff", **{"head.epochs": 1, "head.batch_size": 64})
    evaluate(settings, [run], tmp_path / "out")
    file = tmp_path / "out" / "results.json"
    older = json.loads(file.read_text())
    del older["networks"]["first"]["training"]["attack_start"]
    file.write_text(json.dumps(older))
    with pytest.raises(ConfigError, match="trained with attack_start None, now it is 'the image itself'; choose ano"):
        evaluate(settings, [run], tmp_path / "out")


def test_a_killed_evaluation_ends_with_the_same_classifier(tmp_path):
    run = write_run(tmp_path / "first")
    arguments = [run, "--quiet", "--protocol", "semi_supervised", "--label_fraction", "0.2"]
    for name, value in QUICK.items():
        if "." in name:
            arguments += [f"--{name}", value]
    arguments += ["--semi_supervised.epochs", 6]

    def start(out):
        command = [sys.executable, str(SCRIPTS / "evaluate.py"), *map(str, arguments), "--out", str(out)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    killed = start(tmp_path / "killed")
    deadline = time.monotonic() + 120
    stages = (tmp_path / "killed" / "models").glob
    while not any(stages("*.fine-tuning.training.pt")) and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert any(stages("*.training.pt"))
    for out in ("killed", "whole"):
        process = start(tmp_path / out)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    kept = [load_checkpoint(next((tmp_path / out / "models").iterdir())) for out in ("killed", "whole")]
    assert [len(list((tmp_path / out / "models").iterdir())) for out in ("killed", "whole")] == [1, 1]
    assert kept[0]["description"] == kept[1]["description"]
    for name, tensor in kept[0]["classifier"].items():
        assert torch.equal(tensor, kept[1]["classifier"][name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_fraction": 1.0}, "label_fraction: semi_supervised needs the share of images with labels, below 1"),
        ({"head.learning_rate": [0.1]}, r"head\.learning_rate: .*use --semi_supervised\.learning_rate"),
        ({"head.batch_size": 64}, r"head\.batch_size: .*use --semi_supervised\.batch_size"),
        ({"semi_supervised.epochs": 0}, r"semi_supervised\.epochs: expected an integer >= 1, got 0"),
        ({"semi_supervised.alpha": 1.5}, r"semi_supervised\.alpha: expected a number in \[0, 1\], got 1\.5"),
        ({"semi_supervised.temperature": 0.0}, r"semi_supervised\.temperature: expected a finite number > 0"),
        ({"semi_supervised.beta": float("nan")}, r"semi_supervised\.beta: expected a finite number >= 0"),
        ({"semi_supervised.choose": "test"}, r"semi_supervised\.choose: expected one of held_out, last, got 'test'"),
        ({"semi_supervised.batch_size": 1}, r"semi_supervised\.batch_size: expected an integer >= 2, got 1"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)
