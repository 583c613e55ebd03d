"""A real torchrun job whose ranks are killed: it starts anew where its checkpoint was, or ends soon."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from worlds import run_task

from astra_env.storage.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0
STEPS = 40
RUN = (
    "--config=tiny", f"--learner.total_steps={STEPS}", "--run.checkpoint_every=2", "--probe.enabled=false",
    "--learner.batch_size=8", "--policy=random", "--policy_args={}",
)  # fmt: skip


class Job:
    """Two ranks of train_astra.py under torchrun."""

    def __init__(self, folder, *arguments, max_restarts):
        self.folder = folder
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
        options = (f"--max-restarts={max_restarts}", "scripts/train_astra.py", "--quiet", "--run_dir", str(folder))
        self.log = folder.with_suffix(f".{max_restarts}.log")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, *options, *arguments],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )

    def lines(self):
        path = self.folder / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def ranks(self):
        """Return the process of each rank that lives now."""
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and parent_of(int(entry.name)) == self.process.pid:
                    variables = (entry / "environ").read_bytes().split(b"\0")
                    found |= {int(v[5:]): int(entry.name) for v in variables if v.startswith(b"RANK=")}
        return found

    def wait_for(self, condition):
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end and self.process.poll() is None, self.log.read_text()  # noqa: PT018
            time.sleep(0.005)

    def kill(self, rank):
        """Kill a rank once the run has come a few steps further; returns all ranks' processes."""
        begun = self.lines()
        self.wait_for(lambda: self.lines() >= begun + 4)
        processes = self.ranks()
        os.kill(processes[rank], signal.SIGKILL)
        return processes

    def end(self):
        return self.process.wait(PATIENCE)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process in [*self.ranks().values(), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()


def parent_of(process):
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_job_outlives_a_killed_rank_ends_with_the_second_and_can_be_resumed(tmp_path):
    folder = tmp_path / "run"
    with Job(folder, *RUN, max_restarts=1) as job:
        killed = job.kill(0)
        job.wait_for(lambda: job.ranks().get(0, killed[0]) != killed[0])
        ranks = job.kill(1)
        started = time.monotonic()
        assert job.end() == 1
        assert time.monotonic() - started < 45
        assert not any(Path(f"/proc/{process}").exists() for process in ranks.values())
        assert 8 <= job.lines() < STEPS
    run_task(tmp_path, 2, "script", place=folder, arguments=list(RUN), resume=True)
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [*range(STEPS)]
    assert (folder / "summary.json").exists()
    assert not (folder / ".lock").exists()

    run_task(tmp_path, 2, "script", place=tmp_path / "straight", arguments=list(RUN))
    found, expected = (load_checkpoint(place / "checkpoints" / "last.pt") for place in (folder, tmp_path / "straight"))
    assert all((found["target"][name] == value).all() for name, value in expected["target"].items())
