"""Train a robust classifier: PGD-AT, TRADES, MART, Consistency-AT or ReBAT, with or without robust perception.

python scripts/train_rpat.py --config quickstart --method trades --robust_perception true --run_dir runs/trades
torchrun --nproc-per-node 4 scripts/train_rpat.py --config cifar10_linf --data.root data --run_dir runs/pgd_at

Under torchrun the batch is split over the processes; started anew by --max-restarts, the run in --run_dir continues.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astra_env.config.command_line import run_main
from astra_env.config.paths import given_option, user_path
from astra_env.config.reading import build_parser, from_dict, parse_command_line, to_yaml
from astra_env.distributed import restarted, start
from astra_env.errors import ConfigError
from rpat import RPATConfig, Trainer
from rpat.config import PRESET_PACKAGE
from rpat.resuming import stored_values


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(RPATConfig, package=PRESET_PACKAGE, description=__doc__ or "")
    parser.add_argument("--run_dir", type=str, default=None, help="Where the run is written; default runs/METHOD.")
    parser.add_argument("--resume", action="store_true", help="Continue the run in --run_dir.")
    # The parser's own --print_config would show the method's settings as null.
    print_config = "--print_config" in arguments
    arguments = [argument for argument in arguments if argument != "--print_config"]
    values = parse_command_line(parser, arguments, package=PRESET_PACKAGE, stored=_values_of_run(arguments))
    run_dir, resume = (values.pop(name) for name in ("run_dir", "resume"))
    config = from_dict(RPATConfig, values).resolved()
    if print_config:
        print(to_yaml(config), end="")
        return 0
    if resume and run_dir is None:
        raise ConfigError("run_dir: --resume needs the --run_dir of the run to continue; add it")
    folder = user_path("run_dir", run_dir or f"runs/{config.method.replace(':', '_')}")
    with start(config.device, config.run.timeout_seconds) as world:
        trainer = Trainer(config, world=world)
        resume = resume or world.agreed(restarted() and (folder / "config.yaml").exists())
        summary = trainer.fit(folder, resume=resume, renew=resume and given_option(arguments, "data.root") is not None)
    if world.main:
        print(_report(summary, folder))
    return trainer.exit_status


def _values_of_run(arguments: list[str]) -> dict[str, Any]:
    """Return the settings of the run that is resumed, so that nothing has to be given again; none without a run."""
    given = given_option(arguments, "run_dir") if "--resume" in arguments else None
    folder = user_path("run_dir", given) if given is not None else None
    return stored_values(folder) if folder is not None and (folder / "config.yaml").is_file() else {}


def _report(summary: dict, folder: Path) -> str:
    if not summary["finished"]:
        return f"stopped after {summary['steps']} steps; continue with --resume --run_dir {folder}"
    scores = ", ".join(f"{name} {100 * score['accuracy']:.2f} %" for name, score in summary["test"].items())
    return f"{summary['method']} finished in {summary['training_seconds']:.0f} s: {scores or 'not tested'} ({folder})"


if __name__ == "__main__":
    sys.exit(run_main(main))
