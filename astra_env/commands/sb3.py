"""Train a Stable-Baselines3 agent to choose the attacks of adversarial trainings."""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.sb3.config import CONFIG_PACKAGE, AgentConfig
from astra_env.config.command_line import run_main
from astra_env.config.paths import user_path
from astra_env.config.reading import build_parser, from_dict, parse_command_line, to_yaml
from astra_env.config.run_configuration import config_of_run
from astra_env.errors import ConfigError

if TYPE_CHECKING:
    from agents.sb3.run import AgentRun

DESCRIPTION = """Train a Stable-Baselines3 agent to choose attacks, and compare it with fixed and random ones.

Examples:
  train_sb3.py --config quickstart --run_dir runs/ppo
  train_sb3.py --config quickstart --algo a2c --overrides '{"learner.reward": "cost_aware"}' --run_dir runs/a2c
  train_sb3.py --env attack_strategy --algo dqn --total_timesteps 600 --run_dir runs/dqn
  train_sb3.py --resume --run_dir runs/ppo
  train_sb3.py --play --run_dir runs/ppo      (the trained agent through a whole training, whose network is kept)

Exit status: 0 finished, 2 unusable input (one line says what), 130 or 143 stopped by a signal after saving.
"""


def main() -> int:
    """Run the command and return its exit status."""
    parser = build_parser(AgentConfig, package=CONFIG_PACKAGE, description=DESCRIPTION)
    parser.add_argument("--run_dir", type=str, default=None, help="Where the run is written; required.")
    parser.add_argument("--resume", action="store_true", help="Continue the run in --run_dir with its own config.yaml.")
    parser.add_argument("--play", action="store_true", help="Let the agent trained in --run_dir play one training.")
    parser.add_argument("--play_seed", type=int, default=2000, help="Seed of that training.")
    parser.add_argument("--quiet", action="store_true", help="No progress bar.")
    values = parse_command_line(parser, package=CONFIG_PACKAGE)
    options = {name: values.pop(name) for name in ("run_dir", "resume", "play", "play_seed", "quiet")}
    if options["run_dir"] is None:
        raise ConfigError("run_dir: expected a directory for the run; give one with --run_dir DIR")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    run_dir = user_path("run_dir", options["run_dir"])
    if options["play"]:
        return play_one(config_of_run(AgentConfig, run_dir, package=CONFIG_PACKAGE), run_dir, options["play_seed"])
    config = (
        config_of_run(AgentConfig, run_dir, package=CONFIG_PACKAGE)
        if options["resume"]
        else from_dict(AgentConfig, values)
    )
    return train(config, run_dir, resume=options["resume"], progress=not options["quiet"])


def train(config: AgentConfig, run_dir: Path, *, resume: bool, progress: bool) -> int:
    """Train to the end, evaluate and write everything; returns 0, or the status to exit with after a signal."""
    from agents.sb3.run import AgentRun
    from astra_env.storage.run_directory import RunDirectory

    with RunDirectory(run_dir, to_yaml(config), resume=resume) as run:
        agent = AgentRun(config, run, progress=progress)
        if resume:
            agent.restore()
        status = agent.train()
        if status:
            print(f"stopped; continue with --resume --run_dir {run_dir}", file=sys.stderr)
            return status
        summary = summarise(agent)
        run.write_summary(summary)
    for name, rewards in summary["mean_reward"].items():
        print(f"{name:>8}: mean reward {sum(rewards) / len(rewards):+.4f} over {len(rewards)} trainings")
    print(f"written to {run_dir}")
    return 0


def summarise(agent: "AgentRun") -> dict[str, Any]:
    """Return what ``summary.json`` says of a trained agent: itself, the fixed and the random policy."""
    from agents.sb3.run import evaluate

    config = agent.config
    rewards = evaluate(config, agent.model) if config.evaluation.seeds else {}
    return {"algo": config.algo, "timesteps": agent.model.num_timesteps, "mean_reward": rewards}


def play_one(config: AgentConfig, run_dir: Path, seed: int) -> int:
    """Play one training, print a line per step, keep the network that came out of it."""
    from agents.sb3.run import load_agent, make_play_env
    from astra_env.envs import play
    from astra_env.storage.checkpoint import save_checkpoint

    env, agent = make_play_env(config), load_agent(config, run_dir)
    result = play(env, agent, seed=seed, deterministic=config.evaluation.deterministic, listener=print_step)
    learner = env.unwrapped.learner
    save_checkpoint(run_dir / "played.pt", {"target": learner.target.state_dict(), "step": learner.step_count})
    outcome = {"seed": seed, "mean_reward": result.mean_reward, "diverged": result.diverged, "last": result.last}
    (run_dir / "played.json").write_text(json.dumps(outcome, indent=2) + "\n")
    print(f"mean reward {result.mean_reward:+.4f}; the trained network is in {run_dir / 'played.pt'}")
    return 0


def print_step(number: int, scalars: dict[str, float]) -> None:
    """Print one line about a step of an episode."""
    shown = ("reward", "clean_loss", "adv_loss", "mean_epsilon", "mean_steps")
    print(f"step {scalars['step']:.0f}", *(f"{name} {scalars[name]:.4f}" for name in shown if name in scalars))


if __name__ == "__main__":
    sys.exit(run_main(main))
