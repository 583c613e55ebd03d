"""``astra``: one name for every command."""

import subprocess
import sys
from pathlib import Path

import pytest

from astra_env import __version__
from astra_env.commands import __main__ as astra
from astra_env.config.command_line import run_main


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["astra", *map(str, arguments)])
    return run_main(astra.main)


def test_help_lists_every_command_and_version_tells_it(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in astra.COMMANDS)
    assert run(monkeypatch, "--version") == 0
    assert __version__ in capsys.readouterr().out


def test_every_command_of_the_folder_is_dispatched():
    folder = Path(astra.__file__).parent
    helpers = {"__init__", "__main__", "compare_report", "compare_variants"}
    assert {path.stem.replace("_", "-") for path in folder.glob("*.py") if path.stem not in helpers} | {
        "benchmark"
    } == set(astra.COMMANDS)


@pytest.mark.parametrize("name", [name for name in astra.COMMANDS if name != "benchmark"])
def test_every_command_has_its_main(name):
    assert callable(astra._main_of(name))


def test_an_unknown_command_is_one_line(monkeypatch, capsys):
    assert run(monkeypatch, "trian") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_by_the_dispatcher_is_a_run(monkeypatch, tmp_path, capsys):
    tiny = ["--config", "tiny", "--learner.total_steps", "2", "--probe.enabled", "false", "--quiet"]
    assert run(monkeypatch, "train", *tiny, "--run_dir", tmp_path / "run") == 0
    assert (tmp_path / "run" / "summary.json").is_file()


def test_help_of_a_command_needs_no_torch():
    code = (
        "import sys; sys.argv = ['astra', 'train', '--help']\n"
        "from astra_env.commands.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as done: assert not done.code, done.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-500:]
