"""``astra COMMAND ...``: every command of the package under one name."""

import importlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

from astra_env import __version__
from astra_env.config.command_line import run_main
from astra_env.errors import ConfigError

COMMANDS = {
    "train": "train a network under a learned, fixed or your own attack strategy",
    "sb3": "train a Stable-Baselines3 agent that chooses the attacks",
    "rpat": "train a classifier with robust perception",
    "evaluate": "probe, fine-tune and attack what was trained",
    "compare": "train the same encoder under several methods and attacks, and compare",
    "compare-rpat": "compare the supervised methods with and without robust perception",
    "lp-aft": "post-process an encoder by linear probing and adversarial fine-tuning",
    "export": "write torchvision and timm names, safetensors, ONNX",
    "benchmark": "measure speed against the official form (in a checkout of the repository)",
}
BENCHMARK = Path(__file__).resolve().parents[2] / "scripts" / "benchmark.py"


def main() -> int:
    """Run the command that the command line names; returns its exit status."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"astra-env {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        raise ConfigError(f"command: expected one of {', '.join(COMMANDS)}, got {name!r}")
    sys.argv = [f"astra {name}", *arguments[1:]]
    return _benchmark() if name == "benchmark" else _main_of(name)() or 0


def usage() -> str:
    """Return the list of commands, a line each."""
    lines = "\n".join(f"  {name:<13} {sentence}" for name, sentence in COMMANDS.items())
    return (
        "usage: astra COMMAND [OPTION ...]\n\n"
        "  astra train --config quickstart --run_dir runs/first\n"
        "  astra evaluate runs/first\n\n"
        f"Commands (astra COMMAND --help says more):\n{lines}\n\n"
        "astra --version prints the version."
    )


def _main_of(name: str) -> Callable[[], int | None]:
    module = importlib.import_module(f"astra_env.commands.{name.replace('-', '_')}")
    found: Callable[[], int | None] = module.main
    return found


def _benchmark() -> int:
    if not BENCHMARK.is_file():
        raise ConfigError("benchmark: needs a checkout of the repository, whose scripts/ are not installed by pip")
    sys.path.insert(0, str(BENCHMARK.parent))
    runpy.run_path(str(BENCHMARK), run_name="__main__")
    return 0


def console() -> int:
    """Run ``astra`` as the installed command does: errors that a user can meet take one line and exit status 2."""
    return run_main(main)


if __name__ == "__main__":
    sys.exit(console())
