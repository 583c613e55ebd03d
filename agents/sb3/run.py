"""A run of a Stable-Baselines3 agent: training with checkpoints that continue, evaluation, play."""

import io
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import agents
from agents import sb3
from agents.sb3.config import AgentConfig
from agents.sb3.state import agent_state, load_agent_state, read_parameters
from astra_env.envs import play
from astra_env.envs.training import random_state, set_random_state
from astra_env.errors import CheckpointError, InputError
from astra_env.learner.protocol import Policy
from astra_env.storage.checkpoint import write_atomically
from astra_env.storage.run_directory import RunDirectory
from astra_env.storage.state import UNFIT, one_line
from astra_env.strategy import StrategySpace
from astra_env.training.interrupts import GracefulStop


class AgentRun:
    """Trains an agent in a run directory.

    Model, environment and the random numbers that Stable-Baselines3 takes from the process are saved in one file,
    between rollouts; a resumed run continues as if nothing had happened (on one device).

    Args:
        config: what to train.
        run: where to write.
        progress: show a progress bar.
    """

    def __init__(self, config: AgentConfig, run: RunDirectory, *, progress: bool = False) -> None:
        self.config = config
        self.run = run
        self.progress = progress
        self.env = sb3.make_vec_env(config)
        self.model = sb3.make_model(config.algo, self.env, config)
        self._resumed: dict[str, Tensor] | None = None
        self._next_save = config.checkpoint_every
        self._stop = GracefulStop()

    def restore(self) -> None:
        """Continue from the newest whole checkpoint of the run, if there is one."""
        state = self.run.restore()
        if state is None:
            return
        try:
            self._load(state)
        except UNFIT as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{self.run.path}: the checkpoint does not fit this run ({one_line(error)})"
            ) from error

    def train(self) -> int:
        """Train until the budget is used up; returns 0, or the status to exit with after a signal."""
        remaining = self.config.total_timesteps - self.model.num_timesteps
        with self._stop:
            if self._resumed is not None:
                set_process_random_state(self._resumed)
            if remaining > 0:
                callback = sb3.RolloutCallback(self._between)
                self.model.learn(
                    remaining, callback=callback, reset_num_timesteps=self._resumed is None, progress_bar=self.progress
                )
        if self._stop.requested:
            return self._stop.exit_status
        self.run.save(self.state_dict())
        file = io.BytesIO()
        self.model.save(file)
        with self.run.refusals():
            write_atomically(self.run.path / "model.zip", file.getvalue())
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Return model, environments and random numbers: tensors and plain values."""
        # Indices, because views of one environment would otherwise report its state once each.
        indices = [0] if self.config.env == "instance" else list(range(self.env.num_envs))
        states = [self.env.env_method("state_dict", indices=[index])[0] for index in indices]
        return {
            "algo": self.config.algo,
            "timesteps": self.model.num_timesteps,
            "target": states[0]["target"],
            "agent": agent_state(self.model),
            "envs": states,
            "episode_returns": torch.from_numpy(self.env.episode_returns.copy()),  # type: ignore[attr-defined]
            "episode_lengths": torch.from_numpy(self.env.episode_lengths.copy()),  # type: ignore[attr-defined]
            "random": process_random_state(),
            "action_space": random_state(self.model.action_space.np_random),
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        if state["algo"] != self.config.algo:
            raise CheckpointError(f"algo: the checkpoint holds a {state['algo']} agent, not {self.config.algo}")
        self.env.reset()  # wrappers want to have seen a reset before they step
        for index, inner in enumerate(state["envs"]):
            self.env.env_method("load_state_dict", inner, indices=[index])
        self.env.episode_returns = state["episode_returns"].numpy().copy()  # type: ignore[attr-defined]
        self.env.episode_lengths = state["episode_lengths"].numpy().copy()  # type: ignore[attr-defined]
        load_agent_state(self.model, state["agent"])
        set_random_state(self.model.action_space.np_random, state["action_space"])
        set_process_random_state(state["random"])
        self._resumed = state["random"]
        self._next_save = self.model.num_timesteps + self.config.checkpoint_every

    def _between(self, summary: dict[str, float]) -> bool:
        """Log the rollout before and save when it is time; returns whether to go on."""
        if summary:
            self.run.log(self.model.num_timesteps, summary)
        if self._stop.requested or self.model.num_timesteps >= self._next_save:
            self.run.save(self.state_dict())
            self._next_save = self.model.num_timesteps + self.config.checkpoint_every
        return not self._stop.requested


def make_play_env(config: AgentConfig, *, wrapped: bool = True) -> Any:
    """Return an environment whose learner is still there when its training is over.

    Args:
        config: which environment.
        wrapped: with the action space that ``config.algo`` takes; other policies choose grid indices.
    """
    if config.env == "instance":
        return sb3.make_instance_env(config, autoreset_mode="next_step")
    env = sb3.make_single_env(config)
    return env if wrapped else env.unwrapped


def evaluate(config: AgentConfig, model: Policy) -> dict[str, list[float]]:
    """Return the mean reward of the agent and of each baseline for every seed, on equal training budgets."""
    options = config.evaluation
    rewards: dict[str, list[float]] = {}
    for name in ("agent", *options.baselines):
        env = make_play_env(config, wrapped=name == "agent")
        rewards[name] = []
        for seed in options.seeds:
            policy = model if name == "agent" else _baseline(name, env.unwrapped.space, seed, options.fixed_args)
            result = play(env, policy, seed=seed, deterministic=options.deterministic and name == "agent")
            rewards[name].append(result.mean_reward)
    return rewards


def process_random_state() -> dict[str, Any]:
    """Return the state of the generators that Stable-Baselines3 draws from: the process's own."""
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - it is SB3's generator
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "rest": [int(position), int(has_gauss), float(cached)],
        },
        "python": {"version": version, "internal": list(internal), "gauss": gauss},
    }


def set_process_random_state(state: Mapping[str, Any]) -> None:
    """Continue where :func:`process_random_state` was taken."""
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([entry.cpu() for entry in state["cuda"]])
    position, has_gauss, cached = state["numpy"]["rest"]
    keys = state["numpy"]["keys"].numpy().astype(np.uint32)
    np.random.set_state((state["numpy"]["name"], keys, position, has_gauss, cached))  # noqa: NPY002
    python = state["python"]
    random.setstate((python["version"], tuple(python["internal"]), python["gauss"]))


def _baseline(name: str, space: StrategySpace, seed: int, fixed_args: dict[str, Any]) -> Policy:
    arguments = fixed_args if name == "fixed" else {}
    return agents.make(name, context=agents.Context(space, seed=seed), **arguments)


def load_agent(config: AgentConfig, run_dir: str | Path) -> Policy:
    """Return the trained agent of a run; raises InputError when there is none.

    It is built from ``config`` and takes only tensors from ``model.zip``: nothing of the file is run.
    """
    path = Path(run_dir) / "model.zip"
    model = sb3.make_model(config.algo, sb3.make_vec_env(config), config)
    if not path.is_file():
        raise InputError(f"path: cannot load a {config.algo} agent: there is no {path}; train one first")
    model.set_parameters(read_parameters(path, model, str(path)), device=config.device)
    return model
