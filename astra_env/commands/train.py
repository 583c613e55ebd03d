"""Train a network adversarially under a learned (or any other) attack strategy: an encoder, a classifier, yours."""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astra_env.config.command_line import run_main
from astra_env.config.paths import given_option, user_path
from astra_env.config.reading import build_parser, from_dict, parse_command_line, to_yaml
from astra_env.config.run_configuration import config_of_run
from astra_env.config.schema import ExperimentConfig
from astra_env.errors import ConfigError

if TYPE_CHECKING:
    from astra_env.distributed import World

DESCRIPTION = """Train a network adversarially under an attack strategy: self-supervised (ASTrA) or any other learner.

Examples:
  train_astra.py --config quickstart --run_dir runs/first
  train_astra.py --config cifar10 --data.root data --run_dir runs/cifar10 --learner.precision bf16
  train_astra.py --config cifar10 --policy my_module:MyPolicy --run_dir runs/mine
  train_astra.py --config supervised_quickstart --learner.kind_args.method trades --run_dir runs/supervised
  train_astra.py --resume --run_dir runs/cifar10
  torchrun --nproc-per-node 8 scripts/train_astra.py --config cifar10 --run_dir runs/cifar10

Under torchrun the batch is split over the processes; started anew by --max-restarts, the run in --run_dir continues.

Exit status: 0 finished, 2 unusable input (one line says what), 130 or 143 stopped by a signal after saving.
"""


def main() -> int:
    """Run the command and return its exit status."""
    parser = build_parser(ExperimentConfig, description=DESCRIPTION)
    parser.add_argument("--run_dir", type=str, default=None, help="Where the run is written; required.")
    parser.add_argument("--resume", action="store_true", help="Continue the run in --run_dir with its own config.yaml.")
    parser.add_argument("--track", action="store_true", help="Mirror TensorBoard to Weights & Biases (extra: wandb).")
    parser.add_argument("--quiet", action="store_true", help="No progress bar.")
    values = parse_command_line(parser)
    options = {name: values.pop(name) for name in ("run_dir", "resume", "track", "quiet")}
    if options["run_dir"] is None:
        raise ConfigError("run_dir: expected a directory for the run; give one with --run_dir DIR")
    run_dir = user_path("run_dir", options["run_dir"])
    moved = given_option(sys.argv, "data.root") if options["resume"] else None
    config = (
        config_of_run(ExperimentConfig, run_dir, data_root=moved)
        if options["resume"]
        else from_dict(ExperimentConfig, values)
    )
    from astra_env.distributed import restarted, start

    with start(config.device, config.run.timeout_seconds) as world:
        resume = options["resume"] or world.agreed(restarted() and (run_dir / "config.yaml").exists())
        status = run_training(
            config,
            run_dir,
            resume=resume,
            renew=moved is not None,
            quiet=options["quiet"],
            track=options["track"],
            world=world,
        )
    if not status and world.main:
        report(json.loads((run_dir / "summary.json").read_text()), run_dir)
    return status


def run_training(
    config: ExperimentConfig,
    run_dir: Path,
    *,
    resume: bool = False,
    renew: bool = False,
    quiet: bool = False,
    track: bool = False,
    world: "World | None" = None,
) -> int:
    """Train to the end, measure and write everything; returns 0, or the status to exit with after a signal.

    What the end needs is looked for before anything is written: test images, labels, room on the disk. ``renew``: the
    data of a resumed run has moved, and its configuration is written again.
    """
    import torch

    import agents
    from astra_env.distributed import ALONE, SharedRun
    from astra_env.evaluation import require_measurable
    from astra_env.learner.make import make_learner, training_images
    from astra_env.storage.room import require_room, state_bytes
    from astra_env.storage.run_directory import RunDirectory
    from astra_env.training.trainer import Trainer

    world = world if world is not None else ALONE
    level = logging.WARNING if world.main else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    learner = make_learner(config, training_images(config, world, progress=not quiet and world.main), world)
    context = agents.Context(learner.space, learner.device, config.seed, learner.total_steps, learner.warmup_steps)
    policy = agents.make(config.policy, context=context, **config.policy_args)
    require_measurable(learner, config, progress=not quiet and world.main)
    if world.main:
        kept = learner.total_steps // config.run.keep_every if config.run.keep_every else 0
        require_room(run_dir, state_bytes(learner.state_dict()), kept, resume=resume)
    if track and world.main:
        start_tracking(run_dir, to_yaml(config))
    with SharedRun(world, run_dir, lambda: RunDirectory(run_dir, to_yaml(config), resume=resume, renew=renew)) as run:
        trainer = Trainer(config, learner, policy, run, progress=not quiet)
        if resume:
            trainer.restore()
        status = trainer.fit()
        if status and world.main:
            print(f"stopped at step {learner.step_count}; continue with --resume --run_dir {run_dir}", file=sys.stderr)
        elif world.main:
            trainer.finish()
    return status


def start_tracking(run_dir: Path, config_yaml: str) -> None:
    """Mirror TensorBoard to Weights & Biases; raises ConfigError when it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("track: Weights & Biases is not installed; pip install 'astra-env[wandb]'") from error
    import yaml

    wandb.init(project="astra-env", name=run_dir.name, config=yaml.safe_load(config_yaml), sync_tensorboard=True)


def report(summary: dict[str, Any], run_dir: Path) -> None:
    """Print what a finished run has measured."""
    timing = summary["timing"]
    print(f"{summary['steps']} steps, {timing.get('views_per_second', 0):.0f} views/s, written to {run_dir}")
    if summary["probe"] is not None:
        print(f"{summary['measured']}: clean {100 * summary['probe']['clean']['accuracy']:.2f} %")
        for epsilon, accuracy in summary["probe"]["pgd"].items():
            print(f"  under PGD at {epsilon}: {100 * accuracy['accuracy']:.2f} %")


if __name__ == "__main__":
    sys.exit(run_main(main))
