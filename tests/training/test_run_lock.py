"""Who owns a directory when several want it, at once, after a crash, or from another host."""

import errno
import json
import os
import socket

import pytest

from astra_env.errors import RunDirectoryError
from astra_env.storage.run_directory import RunDirectory
from astra_env.storage.run_lock import acquire, owned, release

RACERS = 12


def race(directory, report):
    """In a child: try to own the directory, report the outcome, and keep it until the end of all."""
    try:
        acquire(directory)
        outcome = b"1"
    except RunDirectoryError:
        outcome = b"0"
    except OSError:
        outcome = b"!"
    os.write(report, outcome)


@pytest.mark.parametrize("before", [None, "torn", json.dumps({"pid": 999999999, "host": socket.gethostname()})])
def test_of_many_processes_at_once_exactly_one_gets_the_directory(tmp_path, before):
    if before is not None:
        (tmp_path / ".lock").write_text(before)
    start, go = os.pipe()
    reports, report = os.pipe()
    end, ended = os.pipe()
    children = []
    for _ in range(RACERS):
        pid = os.fork()
        if pid == 0:
            try:
                os.close(go)
                os.close(ended)
                os.read(start, 1)
                race(tmp_path, report)
                os.read(end, 1)  # the owner lives until all have tried
            finally:
                os._exit(0)
        children.append(pid)
    os.close(go)
    outcomes = b""
    while len(outcomes) < RACERS:
        outcomes += os.read(reports, RACERS)
    os.close(ended)
    for pid in children:
        os.waitpid(pid, 0)
    for descriptor in (start, reports, report, end):
        os.close(descriptor)
    assert sorted(outcomes) == sorted(b"1" + b"0" * (RACERS - 1))
    assert not list(tmp_path.glob(".lock.*"))


def test_a_lock_of_another_host_is_never_taken_over(tmp_path):
    (tmp_path / ".lock").write_text(json.dumps({"pid": 999999999, "host": "elsewhere"}))
    with pytest.raises(RunDirectoryError, match=r"is in use by .*elsewhere.*delete .*\.lock if that process is gone"):
        RunDirectory(tmp_path, "")
    assert json.loads((tmp_path / ".lock").read_text())["host"] == "elsewhere"


def test_a_lock_of_an_earlier_process_with_the_number_of_a_living_one_is_taken_over(tmp_path):
    owner = {"pid": os.getppid(), "host": socket.gethostname(), "started": "1"}
    (tmp_path / ".lock").write_text(json.dumps(owner))
    with RunDirectory(tmp_path, ""):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_only_the_owner_gives_the_directory_free(tmp_path):
    (tmp_path / ".lock").write_text("another's")
    release(tmp_path)
    assert (tmp_path / ".lock").exists()


def test_an_evaluation_owns_its_folder_and_names_its_own_option(tmp_path):
    (tmp_path / ".lock").write_text(json.dumps({"pid": os.getppid(), "host": socket.gethostname()}))
    with (
        pytest.raises(RunDirectoryError, match=r"^out: .* is in use by .*choose another --out"),
        owned(tmp_path, "out"),
    ):
        pytest.fail("was given")


def test_file_systems_without_hard_links_do_as_well(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with RunDirectory(tmp_path, "") as run:
        with pytest.raises(RunDirectoryError, match="is in use by"):
            RunDirectory(tmp_path, "", resume=True)
        run.save({"step": 1})
        run.save({"step": 2})
        (run.checkpoints / "last.pt").write_bytes(b"torn")
        assert run.restore()["step"] == 1
    assert not (tmp_path / ".lock").exists()
