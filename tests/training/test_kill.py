"""Real processes killed with SIGKILL at any moment: what is resumed ends as if nothing had happened, bit for bit."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from forked_runs import PATIENCE, Children, Job

KILLED = -signal.SIGKILL
SLOW_DISK = 0.02
"""Seconds of an fsync, as over a busy network: a good part of a run then passes in writing checkpoints."""
SMALL = {
    "train_astra": ("--config", "tiny", "--run.keep_every", "6", "--probe.enabled", "false"),
    "train_rpat": ("--config", "tiny", "--method", "rebat", "--test.max_images", "16"),
    "train_sb3": ("--config", "tiny", "--total_timesteps", "384", "--checkpoint_every", "128", "--evaluation.seeds=[]"),
}


@pytest.fixture(scope="module")
def children():
    found = Children()
    yield found
    found.close()


@pytest.fixture(scope="module")
def whole(children, tmp_path_factory):
    """Uninterrupted runs, made when first asked for: (folder, outcome, seconds, file system calls) by script."""
    made = {}

    def run(script):
        if script not in made:
            job = Job(children, script, tmp_path_factory.mktemp(script) / "whole", *SMALL[script])
            started = time.monotonic()
            status, calls = job.go(delay=SLOW_DISK)
            assert status == 0, job.said()
            made[script] = job.folder, job.outcome(), time.monotonic() - started, calls
        return made[script]

    return run


@pytest.mark.parametrize(("script", "kills"), [("train_astra", 6), ("train_rpat", 2), ("train_sb3", 2)])
def test_runs_killed_at_random_times_end_as_uninterrupted_ones(children, whole, tmp_path, script, kills):
    _, expected, seconds, _ = whole(script)
    chance, done = random.Random(script), 0
    for attempt in range(10 * kills):
        job = Job(children, script, tmp_path / str(attempt), *SMALL[script])
        for _ in range(min(3, kills - done)):
            status, _ = job.go(kill_after=chance.uniform(0, seconds), delay=SLOW_DISK)
            assert status in (KILLED, 0), job.said()
            done += status == KILLED
        assert job.finish() == expected
        if done >= kills:
            return
    pytest.fail(f"only {done} kills came in time")


@pytest.mark.parametrize(("script", "kills"), [("train_astra", 8), ("train_rpat", 4), ("train_sb3", 2)])
def test_runs_killed_inside_writing_end_as_uninterrupted_ones(children, whole, tmp_path, script, kills):
    """The process dies between two of the system calls that write: half-written files, links made, names not taken."""
    _, expected, _, calls = whole(script)
    moments = random.Random(script).sample(range(1, calls + 1), kills)
    for first, second in zip(moments[::2], [*moments[1::2], None], strict=False):
        job = Job(children, script, tmp_path / str(first), *SMALL[script])
        assert job.go(die_at=first)[0] == KILLED, job.said()
        if second is not None:
            assert job.go(die_at=second)[0] in (KILLED, 0), job.said()
        assert job.finish() == expected


def test_a_killed_evaluation_goes_on_where_it_was(children, whole, tmp_path):
    run = whole("train_astra")[0]
    options = ("--head.epochs", 2, "--head.augment", "false", "--data.max_test_images", 32, "--attack.steps", 2)
    arguments = ("evaluate", run, "--quiet", "--attacks=pgd,cw", *options)

    def evaluate(name, **faults):
        return children.run(*arguments, "--out", tmp_path / name, log=tmp_path / "log", **faults)

    status, calls = evaluate("whole")
    assert status == 0, (tmp_path / "log").read_text()
    expected, chance, found = measured(tmp_path / "whole"), random.Random(0), []
    for moment in chance.sample(range(2, calls + 1), 4):
        assert evaluate(str(moment), die_at=moment)[0] == KILLED
        found.append(len(measured(tmp_path / str(moment))) if (tmp_path / str(moment) / "results.json").exists() else 0)
        assert evaluate(str(moment))[0] == 0, (tmp_path / "log").read_text()
        assert measured(tmp_path / str(moment)) == expected
    assert len(set(found)) > 1, "killed at different stages"


def measured(out):
    networks = json.loads((out / "results.json").read_text())["networks"]
    found = {}
    for network in networks.values():
        for name, entry in network["measurements"].items():
            found[name] = {key: value for key, value in entry.items() if key != "seconds"}
    return found


def test_metrics_and_curves_have_every_step_once(whole):
    folder, outcome, *_ = whole("train_astra")
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == list(range(12))
    assert [step for step, _ in outcome["curves"]["loss"]] == list(range(12))


def test_a_second_process_is_refused_while_the_first_one_lives_and_not_after(children, whole, tmp_path):
    job = Job(children, "train_astra", tmp_path / "run", *SMALL["train_astra"])
    first = children.start(*job.arguments(), log=job.log, delay=1.0)
    wait_for(lambda: (job.folder / "config.yaml").exists())
    owner = json.loads((job.folder / ".lock").read_text())
    assert owner["pid"] == first
    log = tmp_path / "second.log"
    status, _ = children.run("train_astra", "--resume", "--run_dir", job.folder, "--quiet", log=log)
    assert status == 2
    assert f'is in use by {{"pid": {first}' in log.read_text()
    assert log.read_text().count("\n") == 1
    os.kill(first, signal.SIGKILL)
    assert children.hear(PATIENCE) == {"pid": first, "status": KILLED, "calls": None}
    assert job.finish() == whole("train_astra")[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_real_process_with_its_status_and_a_second_one_at_once(children, whole, tmp_path, number):
    job = Job(children, "train_astra", tmp_path / "run", *SMALL["train_astra"])
    pid = children.start(*job.arguments(), log=job.log, delay=0.1)
    wait_for(lambda: (job.folder / "metrics.jsonl").exists() and (job.folder / "checkpoints" / "last.pt").exists())
    os.kill(pid, number)
    assert children.hear(PATIENCE)["status"] == 128 + number, job.said()
    assert "continue with --resume" in job.said()
    assert job.finish() == whole("train_astra")[1]
    again = Job(children, "train_astra", tmp_path / "again", *SMALL["train_astra"])
    pid = children.start(*again.arguments(), log=again.log, delay=1.0)
    wait_for(lambda: list((again.folder / "checkpoints").glob(".last.pt.*.tmp")))
    os.kill(pid, number)
    time.sleep(0.1)
    started = time.monotonic()
    os.kill(pid, number)
    assert children.hear(PATIENCE)["status"] in (128 + number, -number), again.said()
    assert time.monotonic() - started < 1.0
    assert again.finish() == whole("train_astra")[1]


def test_the_same_seed_gives_the_same_run_in_every_process(children, whole, tmp_path):
    job = Job(children, "train_astra", tmp_path / "twin", *SMALL["train_astra"])
    assert job.finish() == whole("train_astra")[1]
    other = Job(children, "train_astra", tmp_path / "other", *SMALL["train_astra"], "--seed", 1)
    assert other.finish() != whole("train_astra")[1]


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def test_the_server_runs_what_is_asked(children, tmp_path):
    assert children.run("train_astra", "--config", "nowhere", "--run_dir", tmp_path / "x", log=tmp_path / "log")[0] == 2
    assert Path(tmp_path / "log").read_text().startswith("error: config: no file and no preset called 'nowhere'")
