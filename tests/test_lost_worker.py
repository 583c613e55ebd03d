"""A worker of the suite that is lost ends the suite with a failure that names the test; the rest does not wait."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CRASHES = """
import os, signal, pytest

@pytest.mark.parametrize("part", range(3))
def test_part(part):
    if part == 1 and {crashes}:
        os.kill(os.getpid(), signal.SIGSEGV)
"""


def options_of_make_test():
    line = re.search(r"/pytest (.+)", (ROOT / "Makefile").read_text())
    return shlex.split(line[1])


def test_make_test_ends_with_a_failure_when_workers_are_lost(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -q\n")
    for file in range(6):
        (tmp_path / f"test_{file}.py").write_text(CRASHES.format(crashes=file in (0, 1, 3)))
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options_of_make_test()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert re.search(r"worker 'gw\d' crashed while running 'test_[01].py::test_part\[1\]'", result.stdout)
    # Both workers are lost and none is replaced, else the third crash shows too, or the run stands still.
    assert "2 failed" in result.stdout
