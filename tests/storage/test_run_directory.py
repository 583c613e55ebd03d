"""The run directory: who owns it, what survives, what is cut back."""

import json
import logging
import os
import socket

import pytest
import torch

from astra_env.errors import CheckpointError, RunDirectoryError
from astra_env.storage.checkpoint import load_checkpoint
from astra_env.storage.run_directory import RunDirectory


def test_metrics_written_after_the_checkpoint_are_cut_when_resuming(tmp_path):
    with RunDirectory(tmp_path / "run", "seed: 1\n") as run:
        run.log(0, {"loss": 1.0})
        run.save({"step": 1, "w": torch.ones(2)})
        run.log(1, {"loss": 2.0})
    with RunDirectory(tmp_path / "run", "", resume=True) as run:
        assert len(run.metrics()) == 2
        assert run.restore()["step"] == 1
        run.log(1, {"loss": 3.0, "shares": [0.25, 0.75]})
        assert [line["loss"] for line in run.metrics()] == [1.0, 3.0]
    assert (tmp_path / "run" / "config.yaml").read_text() == "seed: 1\n"


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before_with_a_warning(tmp_path, caplog):
    with RunDirectory(tmp_path / "run", "") as run:
        run.save({"step": 1})
        run.save({"step": 2}, keep_as="step_2")
        last = run.checkpoints / "last.pt"
        last.write_bytes(last.read_bytes()[:-10])
        with caplog.at_level(logging.WARNING):
            assert run.restore()["step"] == 1
        assert "last.pt" in caplog.text
        assert load_checkpoint(run.checkpoints / "step_2.pt")["step"] == 2
        (run.checkpoints / "previous.pt").write_bytes(b"torn")
        with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
            run.restore()


def test_a_process_that_died_between_naming_the_old_checkpoint_and_writing_the_new_one_leaves_nothing_behind(tmp_path):
    with RunDirectory(tmp_path, "") as run:
        run.save({"step": 1})
    os.link(run.checkpoints / "last.pt", run.checkpoints / "previous.pt")
    with RunDirectory(tmp_path, "", resume=True) as run:
        run.save({"step": 2})
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["last.pt", "previous.pt"]
    assert load_checkpoint(run.checkpoints / "previous.pt")["step"] == 1


def test_metrics_that_were_lost_or_damaged_behind_its_back_are_named(tmp_path, caplog):
    with RunDirectory(tmp_path, "") as run:
        run.log(0, {"loss": 1.0})
        run.log(1, {"loss": 2.0})
        run.save({"step": 2})
    text = run.metrics_path.read_text()
    run.metrics_path.write_text(text.splitlines(keepends=True)[0])
    with RunDirectory(tmp_path, "", resume=True) as run:
        run.restore()
        assert [line["step"] for line in run.metrics()] == [0]
    assert "bytes that were there at the last checkpoint are missing" in caplog.text
    run.metrics_path.write_text(text.replace('"loss": 2.0}', '"loss": 2.'))
    with RunDirectory(tmp_path, "", resume=True) as run:
        run.restore()
        with pytest.raises(RunDirectoryError, match=r"metrics\.jsonl, line 2 is damaged"):
            run.log(2, {"loss": 1.0})


def test_a_directory_that_holds_a_run_is_refused_without_resume(tmp_path):
    RunDirectory(tmp_path / "run", "").close()
    with pytest.raises(RunDirectoryError, match="already holds a run; continue it with --resume"):
        RunDirectory(tmp_path / "run", "")


def test_two_runs_cannot_share_a_directory(tmp_path):
    with RunDirectory(tmp_path, ""), pytest.raises(RunDirectoryError, match=f'is in use by .*"pid": {os.getpid()}'):
        RunDirectory(tmp_path, "", resume=True)


@pytest.mark.parametrize("content", [json.dumps({"pid": 999999999, "host": socket.gethostname()}), "torn"])
def test_a_stale_lock_is_taken_over(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    with RunDirectory(tmp_path, ""):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock").exists()


def test_unwritable_places_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="is a file"):
        RunDirectory(tmp_path / "file", "")
    with pytest.raises(RunDirectoryError, match="cannot write"):
        RunDirectory("/proc/nowhere", "")


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    with RunDirectory(tmp_path, "") as run:
        run.save({"step": 1})

        def full_disk(source, target):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full_disk)
        with pytest.raises(RunDirectoryError, match="No space left on device"):
            run.save({"step": 2})
        monkeypatch.undo()
        assert run.restore()["step"] == 1
