"""The command lines: quick help, errors in one line, Ctrl-C that loses nothing, exports that load."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from random_weights import randomized

from astra_env.commands.export import image_size_of
from astra_env.data import NATIVE_SIZES, load_dataset
from astra_env.errors import ConfigError
from astra_env.evaluation import clean_accuracy
from astra_env.export import load_robustbench
from astra_env.models import resnet18, target_resnet18
from astra_env.storage.checkpoint import save_checkpoint

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
QUICK = ("--quiet", "--data.max_test_images", "60", "--head.epochs", "2", "--head.augment", "false")


def start(script, *arguments, **options):
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a script within this process; gives its exit status, output and errors."""

    def run_script(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        return stopped.value.code, *capsys.readouterr()

    return run_script


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    target = randomized(target_resnet18(width=4, blocks=(1, 1), feature_dim=6, hidden_dim=8))
    save_checkpoint(folder / "checkpoints" / "last.pt", {"target": target.state_dict(), "step": 10})
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"name": "digits", "root": "data"}}))
    return folder


@pytest.mark.parametrize("script", ["evaluate.py", "export.py"])
def test_help_comes_without_waiting_for_torch(script):
    code = (
        "import runpy, sys; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_path({str(SCRIPTS / script)!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "--out" in found.stdout


def test_evaluate_then_export_with_the_trained_head(run, tmp_path, call):
    status, out, err = call(
        "evaluate.py",
        run,
        "--out",
        tmp_path / "eval",
        "--attack.steps",
        2,
        "--curves",
        "noise,path",
        "--perception",
        *QUICK,
    )
    assert status == 0, err
    assert "| first | slf | 60 |" in out
    assert (tmp_path / "eval" / "report.md").read_text() == out.removesuffix("\n")
    assert (tmp_path / "eval" / "figure.png").is_file()
    assert (tmp_path / "eval" / "perception" / "first" / "perception.md").is_file()
    (head,) = (tmp_path / "eval" / "models").glob("*.pt")
    status, out, err = call(
        "export.py", run, "--out", tmp_path / "export", "--head", head, "--push", tmp_path / "shelf"
    )
    assert status == 0, err
    network = load_robustbench(tmp_path / "shelf")
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert sum(results["networks"]["first"]["measurements"]["perception"]["counts"].values()) == 60
    correct = clean_accuracy(network, load_dataset("digits", "test"), max_images=60).correct
    assert correct == results["networks"]["first"]["measurements"]["clean"]["correct"]


def test_ctrl_c_leaves_a_partial_report_and_a_rerun_continues(run, tmp_path, call):
    arguments = ("evaluate.py", run, "--out", tmp_path, "--attack.steps", "3", *QUICK)
    process = start(*arguments, "--attacks=pgd,autoattack")
    results = tmp_path / "results.json"
    deadline = time.monotonic() + 60
    while "PGD-3" not in (results.read_text() if results.exists() else "") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "the same command continues" in err
    partial = json.loads(results.read_text())
    assert partial["status"] == "partial"
    assert "Partial" in (tmp_path / "report.md").read_text()
    status, _, err = call(*arguments)
    assert status == 0, err
    whole = json.loads(results.read_text())
    assert whole["status"] == "complete"
    before, after = (found["networks"]["first"]["measurements"]["PGD-3 linf 8/255"] for found in (partial, whole))
    assert before == after


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("evaluate.py", [], "checkpoints: expected at least one"),
        ("evaluate.py", ["nowhere"], "nowhere holds no checkpoint"),
        ("evaluate.py", ["RUN", "--corruptions", "nowhere"], "gaussian_noise.npy: missing"),
        ("evaluate.py", ["RUN", "--protocl", "slf"], "protocl"),
        ("evaluate.py", ["RUN", "--label_fraction", "0.0001"], "leaves none"),
        ("evaluate.py", ["HEAD_OF_7"], "expected logits (N, 10)"),
        ("evaluate.py", ["RUN", "--attack.epsilon", "[8]"], "got 8.0; in 0-255 units write '8/255'"),
        ("evaluate.py", ["RUN", "--attack.step_size", "2"], "in 0-255 units write '2/255'"),
        ("export.py", [], "checkpoint: give either"),
        ("export.py", ["RUN", "--format", "tflite"], "invalid choice: 'tflite'"),
        ("export.py", ["HEAD_OF_7", "--head", "x.pt"], "has a head already"),
    ],
)
def test_an_error_is_one_line_and_status_2(run, tmp_path, call, script, arguments, message):
    torch.save(resnet18(7, width=4).state_dict(), tmp_path / "seven.pt")
    names = {"RUN": run, "HEAD_OF_7": tmp_path / "seven.pt"}
    given = [names.get(argument, argument) for argument in arguments]
    if "HEAD_OF_7" in arguments and script == "evaluate.py":
        given += ["--data.name", "digits"]
    common = ["--out", tmp_path / "out"] + (["--quiet", "--head.augment", "false"] if script == "evaluate.py" else [])
    status, out, err = call(script, *given, *common)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_the_onnx_file_takes_the_runs_own_images(run, tmp_path, call):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    status, _, _ = call("export.py", run, "--out", tmp_path, "--format", "safetensors,onnx")
    assert status == 0
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    images = load_dataset("digits", "test").images[:3].float() / 255
    assert session.run(None, {"images": images.numpy()})[0].shape == (3, 8)


@pytest.mark.parametrize(
    ("data", "side"),
    [
        ({}, 32),
        ({"name": "digits"}, 16),
        ({"name": "stl10", "image_size": None}, 96),
        ({"name": "folder", "image_size": 48}, 48),
        ({"name": "cifar10", "image_size": 24}, 24),
    ],
)
def test_the_side_of_exported_images_is_the_runs(data, side):
    assert image_size_of({"data": data} if data else {}, Path("x")) == side


def test_a_run_that_does_not_say_its_size_asks_for_it():
    with pytest.raises(ConfigError, match=r"image_size: .*give it with --image_size N"):
        image_size_of({"data": {"name": "folder"}}, Path("x"))


def test_the_native_size_of_digits_is_the_readers():
    assert NATIVE_SIZES["digits"] == load_dataset("digits").images.shape[-1]
