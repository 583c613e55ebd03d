"""Real processes killed with SIGKILL at any moment: what is resumed ends as if nothing had happened, bit for bit."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from forked_runs import PATIENCE, Children, Evaluation, Job

pytestmark = pytest.mark.timeout(3 * PATIENCE)
KILLED = -signal.SIGKILL
MORE = int(os.environ.get("ASTRA_KILLS", "1"))
"""How many times as many kills as usual; 1 gives the 33 of every test run."""
SLOW_DISK = 0.02
"""Seconds of an fsync, as over a busy network: a good part of a run then passes in writing checkpoints."""
SMALL = {
    "train_astra": ("--config", "tiny", "--run.keep_every", "6", "--probe.enabled", "false"),
    "train_rpat": ("--config", "tiny", "--method", "rebat", "--test.max_images", "16"),
    "train_sb3": ("--config", "tiny", "--total_timesteps", "384", "--checkpoint_every", "128", "--evaluation.seeds=[]"),
    "evaluate": ("--attacks=pgd,cw", "--attack.steps=2", "--head.epochs=2", "--data.max_test_images=32"),
}
KILLS_AT_TIMES = {"train_astra": 6, "train_rpat": 3, "train_sb3": 3, "evaluate": 3}
KILLS_IN_WRITING = {"train_astra": 8, "train_rpat": 4, "train_sb3": 2, "evaluate": 4}


@pytest.fixture(scope="module")
def children():
    found = Children()
    yield found
    found.close()


@pytest.fixture(scope="module")
def job(children, tmp_path_factory):
    """A small run of a script in a folder; an evaluation measures one network, trained beforehand."""
    trained = tmp_path_factory.mktemp("trained") / "run"

    def prepare(script, folder, *options):
        if script != "evaluate":
            return Job(children, script, folder, *SMALL[script], *options)
        if not trained.exists():
            Job(children, "train_astra", trained, *SMALL["train_astra"]).finish()
        return Evaluation(children, script, folder, trained, *SMALL[script], *options)

    return prepare


@pytest.fixture(scope="module")
def whole(job, tmp_path_factory):
    """Uninterrupted runs, made when first asked for: (folder, outcome, seconds, file system calls) by script."""
    made = {}

    def run(script):
        if script not in made:
            found = job(script, tmp_path_factory.mktemp(script) / "whole")
            started = time.monotonic()
            status, calls = found.go(delay=SLOW_DISK)
            assert status == 0, found.said()
            made[script] = found.folder, found.outcome(), time.monotonic() - started, calls
        return made[script]

    return run


@pytest.mark.parametrize("script", SMALL)
def test_runs_killed_at_random_times_end_as_uninterrupted_ones(job, whole, tmp_path, script):
    _, expected, seconds, _ = whole(script)
    kills, chance, done = MORE * KILLS_AT_TIMES[script], random.Random(script), 0
    for attempt in range(10 * kills):
        run = job(script, tmp_path / str(attempt))
        for _ in range(min(3, kills - done)):
            status, _ = run.go(kill_after=chance.uniform(0, seconds), delay=SLOW_DISK)
            assert status in (KILLED, 0), run.said()
            done += status == KILLED
        assert run.finish() == expected
        if done >= kills:
            return
    pytest.fail(f"only {done} kills came in time")


@pytest.mark.parametrize("script", SMALL)
def test_runs_killed_inside_writing_end_as_uninterrupted_ones(job, whole, tmp_path, script):
    """The process dies between two of the system calls that write: half-written files, links made, names not taken."""
    _, expected, _, calls = whole(script)
    kills = min(MORE * KILLS_IN_WRITING[script], calls)
    moments = random.Random(script).sample(range(1, calls + 1), kills)
    for first, second in zip(moments[::2], [*moments[1::2], None], strict=False):
        run = job(script, tmp_path / str(first))
        assert run.go(die_at=first)[0] == KILLED, run.said()
        if second is not None:
            assert run.go(die_at=second)[0] in (KILLED, 0), run.said()
        assert run.finish() == expected


@pytest.mark.parametrize("script", SMALL)
def test_a_disk_that_fills_at_any_moment_costs_one_line_and_nothing_else(job, whole, tmp_path, script):
    _, expected, _, calls = whole(script)
    chance = random.Random(f"full {script}")
    for moment in (1, *chance.sample(range(2, calls), 2 * MORE)):
        run = job(script, tmp_path / str(moment))
        status, _ = run.go(full_from=moment)
        said = [line for line in run.said().splitlines() if line.startswith("error: ")]
        assert (status, len(said)) == (2, 1), run.said()
        assert "No space left on device" in said[0]
        assert "Traceback" not in run.said()
        assert run.finish() == expected


def test_metrics_and_curves_have_every_step_once(whole):
    folder, outcome, *_ = whole("train_astra")
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == list(range(12))
    assert [step for step, _ in outcome["curves"]["loss"]] == list(range(12))


def test_a_second_process_is_refused_while_the_first_one_lives_and_not_after(children, job, whole, tmp_path):
    run = job("train_astra", tmp_path / "run")
    first = children.start(*run.arguments(), log=run.log, hang_at=20)
    wait_for(lambda: "hangs" in run.said())
    owner = json.loads((run.folder / ".lock").read_text())
    assert owner["pid"] == first
    log = tmp_path / "second.log"
    status, _ = children.run("train_astra", "--resume", "--run_dir", run.folder, "--quiet", log=log)
    assert status == 2
    assert f'is in use by {{"pid": {first}' in log.read_text()
    assert log.read_text().count("\n") == 1
    os.kill(first, signal.SIGKILL)
    assert children.hear(PATIENCE) == {"pid": first, "status": KILLED, "calls": None}
    assert run.finish() == whole("train_astra")[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("script", ["train_astra", "train_rpat", "train_sb3"])
def test_a_signal_saves_and_ends_a_real_process_with_its_status(children, job, whole, tmp_path, script, number):
    run = job(script, tmp_path / "run")
    pid = children.start(*run.arguments(), log=run.log, wait_at=whole(script)[3] // 2)
    wait_for(lambda: "waits" in run.said())
    os.kill(pid, number)
    assert children.hear(PATIENCE)["status"] == 128 + number, run.said()
    assert "continue with --resume" in run.said()
    assert run.finish() == whole(script)[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_evaluation_which_the_same_command_continues(children, job, whole, tmp_path, number):
    run = job("evaluate", tmp_path / "run")
    pid = children.start(*run.arguments(), log=run.log, wait_at=whole("evaluate")[3] // 2)
    wait_for(lambda: "waits" in run.said())
    os.kill(pid, number)
    assert children.hear(PATIENCE)["status"] == 128 + number, run.said()
    assert "interrupted: " in run.said()
    assert run.finish() == whole("evaluate")[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_real_process_at_once(children, job, whole, tmp_path, number):
    """It hangs in a call that takes an hour; the first signal asks it to finish that, the next ones insist."""
    run = job("train_astra", tmp_path / "run")
    pid = children.start(*run.arguments(), log=run.log, hang_at=20)
    wait_for(lambda: "hangs" in run.said())
    assert insist(children, pid, number) == 128 + number, run.said()
    assert run.finish() == whole("train_astra")[1]


def insist(children, pid, number):
    """Send a signal until the process is over; returns its status."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        os.kill(pid, number)
        answer = children.hear(0.2)
        if answer is not None:
            return answer["status"]
    return None


def test_the_same_seed_gives_the_same_run_in_every_process_however_fast_the_disk_is(job, whole, tmp_path):
    assert job("train_astra", tmp_path / "twin").finish() == whole("train_astra")[1]
    assert job("train_astra", tmp_path / "other", "--seed", 1).finish() != whole("train_astra")[1]


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def test_the_server_runs_what_is_asked(children, tmp_path):
    assert children.run("train_astra", "--config", "nowhere", "--run_dir", tmp_path / "x", log=tmp_path / "log")[0] == 2
    assert Path(tmp_path / "log").read_text().startswith("error: config: no file and no preset called 'nowhere'")
