"""Who owns a directory when several want it, at once, after a crash, or from another host."""

import errno
import json
import os
import signal
import socket

import pytest

from astra_env.errors import RunDirectoryError
from astra_env.storage.run_directory import RunDirectory
from astra_env.storage.run_lock import acquire, owned, release

RACERS = 12


def race(directory, report):
    """In a child: try to own the directory, report the outcome, and keep it until the end of all."""
    lock = None
    try:
        lock = acquire(directory)
        outcome = b"1"
    except RunDirectoryError:
        outcome = b"0"
    except OSError:
        outcome = b"!"
    os.write(report, outcome)
    return lock


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
                lock = race(tmp_path, report)
                os.read(end, 1)  # the owner lives until all have tried
                del lock
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
    (tmp_path / ".lock").write_text(json.dumps({"pid": os.getppid(), "host": socket.gethostname()}))
    with RunDirectory(tmp_path, ""):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_what_another_has_taken_meanwhile_stays_its_own(tmp_path):
    first = acquire(tmp_path)
    release(first)
    second = acquire(tmp_path)
    release(first)
    with pytest.raises(RunDirectoryError, match="is in use by"):
        acquire(tmp_path)
    release(second)
    assert not list(tmp_path.iterdir())


def test_an_evaluation_owns_its_folder_and_names_its_own_option(tmp_path):
    with (
        owned(tmp_path, "out"),
        pytest.raises(RunDirectoryError, match=r"^out: .* is in use by .*choose another --out"),
        owned(tmp_path, "out"),
    ):
        pytest.fail("was given")


def test_a_child_that_outlives_its_killed_owner_keeps_nothing(tmp_path):
    reports, report = os.pipe()
    end, ended = os.pipe()
    go, gone = os.pipe()
    owner = os.fork()
    if owner == 0:
        try:
            os.close(ended)
            lock = acquire(tmp_path)
            if os.fork() == 0:
                os.write(report, b"1")
                os.read(end, 1)
            elif lock.is_locked:
                os.read(go, 1)
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(0)
    assert os.read(reports, 1) == b"1"
    try:
        with pytest.raises(RunDirectoryError, match=f"is in use by .*{owner}"):
            acquire(tmp_path)
        os.write(gone, b"1")
        os.waitpid(owner, 0)
        release(acquire(tmp_path))
    finally:
        for descriptor in (reports, report, end, ended, go, gone):
            os.close(descriptor)


@pytest.mark.filterwarnings("ignore:flock not supported")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_without_locks_of_the_system_the_file_is_the_lock(tmp_path, monkeypatch, number):
    def refuse(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with RunDirectory(tmp_path, ""), pytest.raises(RunDirectoryError, match=f"is in use by .*{os.getpid()}"):
        RunDirectory(tmp_path, "", resume=True)
    assert not (tmp_path / ".lock").exists()
    (tmp_path / ".lock").write_text("7\nelsewhere\n")
    with pytest.raises(RunDirectoryError, match="is in use by 7 elsewhere"):
        acquire(tmp_path)


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
