"""Runs scripts in forked children of one process that has imported everything: a real process costs milliseconds.

One JSON object a line on standard input starts a child: ``argv`` (script name and arguments), ``log`` (where its output
goes), ``delay`` (seconds by which every fsync is slow) and the numbers, from 1, of calls below: ``die_at`` (before it
the child kills itself with SIGKILL), ``wait_at`` (before it the child waits for a signal), ``hang_at`` (it takes an
hour), ``full_from`` (from it on the disk is full). Answers on standard output: ``{"pid"}``, then
``{"pid", "status", "calls"}`` when it is over; a negative status is the signal that ended it.

The file system calls of a run are its moments of danger; a child counts them and can be killed at each.
"""

import contextlib
import errno
import functools
import importlib.util
import json
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CALLS = ("fsync", "replace", "link", "truncate", "unlink")
TAKING_ROOM = ("fsync", "replace", "link")
HOUR = 3600.0


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inject(count: list[int], request: dict[str, Any]) -> None:
    """Let this process's file system calls be counted, slow, refused or its last."""
    names = ("delay", "die_at", "wait_at", "hang_at", "full_from")
    delay, die_at, wait_at, hang_at, full_from = (request.get(name) for name in names)
    woken, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(waking)

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def counted(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if count[0] == wait_at:
                print("waits", flush=True)
                os.read(woken, 1)
            if count[0] == hang_at:
                print("hangs", flush=True)
                time.sleep(HOUR)
            if full_from is not None and count[0] >= full_from and name in TAKING_ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if name == "fsync" and delay:
                time.sleep(delay)
            return call(*arguments, **options)

        return counted

    for name in CALLS:
        setattr(os, name, wrap(name, getattr(os, name)))


def child(request: dict[str, Any], scripts: dict[str, Any], report: int) -> None:
    output = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    count = [0]
    inject(count, request)
    script, *arguments = request["argv"]
    sys.argv = [script, *arguments]
    status = 1
    try:
        status = scripts[script].run_main(scripts[script].main)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(report, json.dumps(count[0]).encode())
        os._exit(status)


def serve() -> None:
    import matplotlib.pyplot  # noqa: F401
    import torch

    import agents.sb3.run  # noqa: F401
    import astra_env.evaluation.campaign.runner
    import astra_env.plotting.training
    import astra_env.training.trainer  # noqa: F401
    from astra_env.data import load_dataset

    torch.set_num_threads(1)
    load_dataset("digits")
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    warm_up(load("train_astra"))
    scripts = {name: load(name) for name in ("train_astra", "train_rpat", "train_sb3", "evaluate")}
    running: dict[int, int] = {}
    say({"ready": True})
    while True:
        if select.select([sys.stdin], [], [], 0 if running else None)[0]:
            line = sys.stdin.readline()
            if not line:
                return
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(reading)
                child(json.loads(line), scripts, writing)
            os.close(writing)
            running[pid] = reading
            say({"pid": pid})
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                calls = os.read(running[pid], 32).decode()
                os.close(running.pop(pid))
                status = os.waitstatus_to_exitcode(status)
                say({"pid": pid, "status": status, "calls": json.loads(calls) if calls else None})
        if running:
            time.sleep(0.005)


def warm_up(script: Any) -> None:
    """Do once what every child would do first."""
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        sys.argv = ["", "--config", "tiny", "--run_dir", f"{folder}/run", "--quiet", "--learner.total_steps", "2"]
        with contextlib.redirect_stdout(nowhere):
            script.main()


def say(message: dict[str, Any]) -> None:
    sys.__stdout__.write(json.dumps(message) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


if __name__ == "__main__":
    serve()
