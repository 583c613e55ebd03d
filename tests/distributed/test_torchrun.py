"""The supervised trainer and the evaluation under a real torchrun, from training to the table of accuracies."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 180.0
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def run(*arguments):
    """Run Python in the repository's root; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def accuracies(folder):
    (network,) = json.loads((folder / "results.json").read_text())["networks"].values()
    return {
        name: {key: value for key, value in measured.items() if key != "seconds"}
        for name, measured in network["measurements"].items()
    }


def test_two_processes_train_a_classifier_and_measure_what_one_measures(tmp_path):
    place = tmp_path / "run"
    small = ("--device=cpu", "--epochs=1", "--data.max_images=128", "--validation.size=32", "--test.max_images=32")
    printed = run(*TORCHRUN, "scripts/train_rpat.py", "--config=tiny", "--method=pgd_at", *small, "--run_dir", place)
    assert printed.count("pgd_at finished") == 1
    assert json.loads((place / "summary.json").read_text())["finished"]
    assert not (place / ".lock").exists()

    few = ("--quiet", "--device=cpu", "--data.max_test_images=50", "--attack.steps=3")
    printed = run(*TORCHRUN, "scripts/evaluate.py", place, *few, "--out", tmp_path / "two")
    assert printed.count("| run |") == 1
    run("scripts/evaluate.py", place, *few, "--out", tmp_path / "one")
    found = accuracies(tmp_path / "two")
    assert len(found) == 2
    assert found == accuracies(tmp_path / "one")
