"""Runs of the scripts in children that can be killed, and the digests of what they leave."""

import contextlib
import hashlib
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from astra_env.storage.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600
"""Seconds to wait for anything, on a machine that is busy with other things."""
CLOCKS = re.compile(
    r"\.(seconds|timing|metrics_bytes|agent\.episodes\.ep_info_buffer\.\d+\.t"
    r"|agent\.model\.data\.(start_time|_num_timesteps_at_start))"
)
"""Parts of a checkpoint that hold times, the length of a file that is compared itself, or where a process began."""
AGENT = ".agent.model"
"""Stable-Baselines3's archive, which holds times beside the weights."""


class Children:
    """Scripts run as children of the fork server; see there."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "CUDA_VISIBLE_DEVICES": ""}
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
            cwd=ROOT,
        )
        self.buffer = b""
        self.hear(PATIENCE)

    def start(self, *argv, log, **faults):
        request = {"argv": [str(argument) for argument in argv], "log": str(log), **faults}
        self.server.stdin.write((json.dumps(request) + "\n").encode())
        return self.hear(PATIENCE)["pid"]

    def run(self, *argv, log, kill_after=None, **faults):
        """Run to the end, or kill after so many seconds; returns (status, file system calls)."""
        pid = self.start(*argv, log=log, **faults)
        answer = self.hear(kill_after if kill_after is not None else PATIENCE)
        if answer is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            answer = self.hear(PATIENCE)
        assert answer["pid"] == pid
        return answer["status"], answer["calls"]

    def close(self):
        self.server.stdin.close()
        self.server.wait(timeout=PATIENCE)
        self.server.stdout.close()

    def hear(self, timeout):
        end = time.monotonic() + timeout
        while b"\n" not in self.buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.server.stdout], [], [], left)[0]:
                return None
            self.buffer += os.read(self.server.stdout.fileno(), 4096)
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)


class Job:
    """One script's small run: how it is started, continued, and what must come out of it."""

    def __init__(self, children, script, folder, *options):
        self.children, self.script, self.folder, self.options = children, script, folder, options
        self.log = folder.parent / f"{folder.name}.log"

    def arguments(self):
        if (self.folder / "config.yaml").exists():
            return (self.script, "--run_dir", self.folder, "--resume", *self.quiet())
        return (self.script, *self.options, "--run_dir", self.folder, *self.quiet())

    def quiet(self):
        return () if self.script == "train_rpat" else ("--quiet",)

    def go(self, **faults):
        return self.children.run(*self.arguments(), log=self.log, **faults)

    def said(self):
        return self.log.read_text()[-2000:] if self.log.exists() else ""

    def finish(self):
        status, _ = self.go()
        assert status == 0, self.said()
        assert not list(self.folder.rglob(".*.tmp"))
        assert not (self.folder / ".lock").exists()
        return self.outcome()

    def outcome(self):
        """Digests of metrics and figures, and the weights: everything but clocks."""
        summary = json.loads((self.folder / "summary.json").read_text())
        results = {name: summary.get(name) for name in ("final", "probe", "test", "selected", "mean_reward", "steps")}
        state = load_checkpoint(self.folder / "checkpoints" / "last.pt")
        files = files_of(self.folder, "metrics.jsonl", "*.png")
        return {**files, **results, "state": digest_of(state), "curves": curves_of(self.folder)}


class Evaluation(Job):
    """An evaluation of a run: what it measured, its report, its figure and the heads it trained."""

    def arguments(self):
        return (self.script, *self.options, "--out", self.folder, *self.quiet())

    def outcome(self):
        networks = json.loads((self.folder / "results.json").read_text())["networks"]
        measured = {
            (network, name): {key: value for key, value in entry.items() if key != "seconds"}
            for network, record in networks.items()
            for name, entry in record["measurements"].items()
        }
        heads = {path.name: digest_of(load_checkpoint(path)) for path in sorted((self.folder / "models").glob("*.pt"))}
        return {**measured, **heads, **files_of(self.folder, "report.md", "*.png")}


def files_of(folder, *patterns):
    """SHA-256 of files, by name."""
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    assert len(found) >= len(patterns) - 1, found
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def curves_of(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if not name.startswith("throughput")]
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def digest_of(state):
    digest = hashlib.sha256()
    _add(digest, "", state)
    return digest.hexdigest()


def _add(digest, name, value):
    if CLOCKS.fullmatch(name):
        return
    if name == AGENT:
        archive = zipfile.ZipFile(io.BytesIO(value.numpy().tobytes()))
        weights = [entry for entry in archive.namelist() if entry.endswith(".pth")]
        value = {entry: torch.load(io.BytesIO(archive.read(entry)), weights_only=True) for entry in weights}
        value["data"] = json.loads(archive.read("data"))
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            _add(digest, f"{name}.{key}", value[key])
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _add(digest, f"{name}.{index}", entry)
    elif isinstance(value, torch.Tensor):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        digest.update(f"{name}={value!r}".encode())
