"""Full disks, read-only and vanished places: one line says what is wrong, and the last good checkpoint is intact."""

import contextlib
import errno
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import RunDirectoryError
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.storage.checkpoint import load_checkpoint
from astra_env.storage.run_directory import RunDirectory
from astra_env.strategy import AttackStrategy

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--config", "tiny", "--quiet", "--probe.enabled", "false", "--learner.total_steps", "8")


@pytest.fixture
def train(monkeypatch, capsys):
    """Run train_astra within this process; gives its exit status and what it said on stderr."""
    spec = importlib.util.spec_from_file_location("train_astra", ROOT / "scripts" / "train_astra.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_astra.py", *map(str, arguments)])
        return script.run_main(script.main), capsys.readouterr().err

    return run


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a small file system")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def one_line(message):
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def fill(place):
    """Leave no byte free on the file system of ``place``."""
    with open(place / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(place).free == 0


def test_a_run_on_a_full_disk_stops_with_one_line_and_goes_on_when_there_is_room(small_disk, tmp_path, train):
    run = small_disk / "run"
    assert train(*SMALL, "--run_dir", tmp_path / "whole")[0] == 0
    assert train(*SMALL, "--run_dir", run, "--learner.total_steps", 4)[0] == 0
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("total_steps: 4", "total_steps: 8"))
    before = {path.name: path.read_bytes() for path in (run / "checkpoints").glob("*.pt")}
    fill(small_disk)
    status, said = train("--resume", "--run_dir", run, "--quiet")
    assert status == 2
    assert "run_dir: the checkpoints need " in one_line(said)
    assert "has 0.0 kB; make room" in said
    assert {path.name: path.read_bytes() for path in (run / "checkpoints").glob("*.pt")} == before
    (small_disk / "filler").unlink()
    assert train("--resume", "--run_dir", run, "--quiet")[0] == 0
    assert load_checkpoint(run / "checkpoints" / "last.pt")["step"] == 8
    assert not list(run.rglob(".*.tmp"))


def test_a_disk_that_fills_in_the_middle_of_a_checkpoint_leaves_the_one_before(small_disk):
    with RunDirectory(small_disk / "run", "seed: 1\n") as run:
        run.log(0, {"loss": 1.0})
        run.save({"step": 1, "weights": torch.ones(1000)})
        fill(small_disk)
        with pytest.raises(RunDirectoryError, match=r"No space left on device\); the last good checkpoint is intact"):
            run.save({"step": 2, "weights": torch.ones(100_000)})
        assert run.restore()["step"] == 1
        assert [path.name for path in run.checkpoints.glob(".*")] == []
        with pytest.raises(RunDirectoryError, match="No space left"):
            run.write_summary({"text": "x" * 10_000})


def test_metrics_that_the_disk_refuses_are_an_error_not_a_gap(tmp_path, monkeypatch):
    with RunDirectory(tmp_path / "run", "") as run:
        monkeypatch.setattr(run, "_metrics", Refusing(run._metrics))
        with pytest.raises(RunDirectoryError, match="Input/output error"):
            run.log(0, {"loss": 1.0})
        monkeypatch.undo()
    assert not (tmp_path / "run" / ".lock").exists()


class Refusing:
    """A file on a disk that breaks."""

    def __init__(self, file):
        self.file = file

    def write(self, data):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("place", ["/proc/run", "/dev/null/run"])
def test_places_that_cannot_be_written_are_named(train, place):
    status, said = train(*SMALL, "--run_dir", place)
    assert status == 2
    assert place in one_line(said)


def test_a_read_only_directory_is_named(tmp_path, train):
    place = tmp_path / "readonly"
    place.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place)]
    if subprocess.run(options, capture_output=True).returncode:
        place.chmod(0o500)
        if os.access(place, os.W_OK):
            pytest.skip("this user writes everywhere")
    status, said = train(*SMALL, "--run_dir", place / "run")
    if os.path.ismount(place):
        subprocess.run(["umount", "--lazy", str(place)], check=True)
    assert status == 2
    assert "choose a writable --run_dir" in one_line(said)


@pytest.fixture
def images(tmp_path):
    """A folder of a few images in two classes."""
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for index in range(10):
                Image.new("RGB", (8, 8), (index * 20, 10, 200)).save(folder / f"{index}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("budget", [0, 100])
def test_images_that_vanish_in_the_middle_of_a_run_do_not_stop_it(tmp_path, images, budget):
    """They are in memory, or in a mapped file that stays open as long as the run."""
    overrides = {"data.name": "folder", "data.root": str(images), "data.max_images": None, "learner.batch_size": 8}
    config = load_config(ExperimentConfig, "tiny", {**overrides, "data.host_budget_mib": budget})
    weights = []
    for vanishing in (False, True):
        learner = ContrastiveLearner(config)
        learner.step(AttackStrategy.constant(1, steps=1))
        if vanishing:
            shutil.rmtree(images)
        for _ in range(3):
            learner.step(AttackStrategy.constant(1, steps=1))
        weights.append(torch.cat([tensor.double().flatten() for tensor in learner.target.state_dict().values()]))
    assert torch.equal(*weights)


def test_a_data_directory_that_vanished_is_named_and_the_run_stays_as_it_is(tmp_path, images, train):
    data = ("--data.name", "folder", "--data.root", images, "--data.max_images=null")
    run = tmp_path / "run"
    assert train(*SMALL, *data, "--run_dir", run, "--learner.batch_size", 8)[0] == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    images.rename(tmp_path / "elsewhere")
    status, said = train("--resume", "--run_dir", run, "--quiet")
    assert status == 2
    assert str(images) in one_line(said)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_directory_that_vanishes_is_an_error_of_one_line(tmp_path):
    run = RunDirectory(tmp_path / "run", "")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match="No such file or directory"):
        run.save({"step": 1})
    run.close()
