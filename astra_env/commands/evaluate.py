"""Evaluate encoders and classifiers: probes, fine-tuning, attacks, curves, corruptions; one table for all of them."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from astra_env.config.command_line import run_main
from astra_env.config.paths import user_path
from astra_env.config.reading import build_parser, from_dict, parse_command_line
from astra_env.errors import ConfigError
from astra_env.evaluation.campaign.config import EvaluationConfig
from astra_env.training.interrupts import GracefulStop, Interrupted

PRESETS = "astra_env.evaluation.campaign.presets"
WAIT_SECONDS = 7 * 24 * 3600.0
"""How long processes wait for the one that trains a head or runs AutoAttack."""
DESCRIPTION = """Evaluate encoders and classifiers and write results.json, report.md and figure.png.

Examples:
  evaluate.py runs/first                                  clean and PGD-20 accuracy of a linear probe
  evaluate.py runs/a runs/b --protocol aff                two runs, fully fine-tuned, in one table
  evaluate.py model.pt --data.name cifar10 --data.root data --config standard
  evaluate.py runs/a --label_fraction 0.01                head trained on 1 % of the labels, other images not used
  evaluate.py runs/a --protocol semi_supervised --label_fraction 0.1    pseudo-labels for the other images (ACL)
  evaluate.py runs/a --every                              robust accuracy against epoch, over all kept checkpoints
  evaluate.py runs/a --corruptions data/CIFAR-10-C
  torchrun --nproc-per-node 8 scripts/evaluate.py runs/a        test images shared out over the processes

Ctrl-C or SIGTERM leaves results.json partial and whole; the same command continues it. A second one exits at once.
Exit status: 0 finished, 2 unusable input (one line says what), 130 or 143 stopped by a signal.
"""


def main() -> int:
    """Run the command and return its exit status."""
    parser = build_parser(EvaluationConfig, package=PRESETS, description=DESCRIPTION)
    parser.add_argument("checkpoints", nargs="*", type=str, help="Run directories, checkpoints, .safetensors exports.")
    parser.add_argument("--out", type=str, default="evaluation", help="Where results go.")
    parser.add_argument("--every", action="store_true", help="Evaluate all kept checkpoints of each run directory.")
    parser.add_argument("--perception", action="store_true", help="Add RPAT's perception analysis.")
    parser.add_argument("--quiet", action="store_true", help="No progress bars.")
    values = parse_command_line(parser, sys.argv[1:], package=PRESETS)
    names = ("checkpoints", "out", "every", "perception", "quiet")
    options = {name: values.pop(name) for name in names}
    config = from_dict(EvaluationConfig, values)
    out = user_path("out", options["out"])
    from astra_env.distributed import start
    from astra_env.evaluation.campaign.runner import evaluate

    progress = not options["quiet"]
    hooks = {"perception": perception_hook(config, out, progress)} if options["perception"] else {}
    choices = {"every": options["every"], "hooks": hooks, "progress": progress}
    with start(config.device, WAIT_SECONDS) as world, GracefulStop(at_once=True):
        try:
            results = evaluate(config, options["checkpoints"], out, world=world, **choices)
            if world.main:
                print(write_report(results, out))
        except Interrupted as interruption:
            if world.main:
                write_partial(out)
            return interruption.exit_status
    return 0


def perception_hook(config: EvaluationConfig, out: Path, progress: bool) -> Any:
    """Return RPAT's perception analysis as a hook; raises ConfigError when this installation has none."""
    try:
        from rpat.perception import analyse, write_perception
    except ImportError as error:
        raise ConfigError(f"perception: rpat.perception cannot be imported ({error}); install astra-env") from error

    def analysis(name: str, model: Any, test: Any) -> dict[str, Any]:
        found = analyse(
            model,
            test,
            config.attack_within(config.epsilons[0]),
            batch_size=config.attack.batch_size,
            seed=config.seed,
            progress=progress,
        )
        write_perception(found, out / "perception" / name.replace("/", "_"), title=name)
        return found.as_dict()

    return analysis


def write_report(results: Mapping[str, Any], out: Path) -> str:
    """Write ``report.md`` and ``figure.png`` and return the report."""
    from astra_env.evaluation.campaign.report import markdown
    from astra_env.plotting.evaluation import plot_evaluation
    from astra_env.storage.checkpoint import write_atomically

    text = markdown(results)
    write_atomically(out / "report.md", text.encode())
    plot_evaluation(results, out / "figure.png")
    return text


def write_partial(out: Path) -> None:
    """Report what was measured before the interruption."""
    from astra_env.evaluation.campaign.results import read_results

    results = read_results(out)
    if results is not None:
        write_report(results, out)
    print(f"interrupted: {out} holds what was measured so far; the same command continues", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_main(main))
