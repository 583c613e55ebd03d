"""Measure the environments: their overhead, PPO's memory, and whether agents learn in them."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse

from astra_env.config.command_line import run_main

DESCRIPTION = """Measure the environments.

  overhead   time that an environment adds to the learner's own observation and step (ResNet-18)
  memory     rollout buffer of PPO at its default n_steps
  learning   mean reward of PPO, A2C and improved REINFORCE against random, after equal experience
"""


def main() -> int:
    parser = jsonargparse.ArgumentParser(description=DESCRIPTION)
    parser.add_argument("what", choices=["overhead", "memory", "learning"], help="What to measure.")
    parser.add_argument("--output", required=True, help="JSON file to write; learning also draws a figure beside it.")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads.")
    parser.add_argument("--views", type=int, default=32, help="Views per minibatch.")
    parser.add_argument("--steps", type=int, default=20, help="overhead: steps to time.")
    parser.add_argument("--width", type=int, default=64, help="overhead: channels of the ResNet-18's first stage.")
    parser.add_argument("--image_size", type=int, default=32, help="overhead, memory: side of a view.")
    parser.add_argument("--experiment", default="tiny", help="learning: preset of the training.")
    parser.add_argument("--trainings", type=int, default=40, help="learning: trainings to learn from.")
    parser.add_argument("--seeds", type=int, default=3, help="learning: agents per algorithm.")
    parser.add_argument("--evaluations", type=int, default=8, help="learning: trainings to be judged by.")
    options = parser.parse_args()

    import torch

    from astra_env.training.trainer import versions

    torch.set_num_threads(options.threads)
    result = {"overhead": overhead, "memory": memory, "learning": learning}[options.what](options)
    record = {
        "command": " ".join(["python", "scripts/benchmark_envs.py", *sys.argv[1:]]),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "threads": options.threads, "load": os.getloadavg()[0]},
        "versions": {**versions(), **_rl_versions()},
        "result": result,
    }
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n")
    if options.what == "learning":
        from astra_env.plotting.learning import learning_figure

        learning_figure(result["curves"], result["evaluation"], output.with_suffix(".png"))
    return 0


def overhead(options: Any) -> dict[str, Any]:
    """Time the environments' steps and, within them, the learner's; the rest is overhead."""
    from agents.sb3 import InstanceVecEnv
    from astra_env.envs import AttackStrategyEnv, InstanceAttackStrategyVectorEnv

    overrides = {
        "target.width": options.width,
        "learner.batch_size": options.views // 2,
        "data.image_size": options.image_size,
        "learner.total_steps": 10 * options.steps,
        "env.chunk_steps": 1,
    }
    single = AttackStrategyEnv("quickstart", overrides)
    vector = InstanceAttackStrategyVectorEnv(options.views, "quickstart", overrides)
    adapted = InstanceAttackStrategyVectorEnv(options.views, "quickstart", overrides)
    adapter = InstanceVecEnv(adapted)
    adapter.seed(0)
    adapter.reset()
    single.reset(seed=0)
    vector.reset(seed=0)
    return {
        "attack_strategy": _share(single, lambda: single.step(single.action_space.sample()), options.steps),
        "instance": _share(vector, lambda: vector.step(vector.action_space.sample()), options.steps),
        "sb3_adapter": _share(adapted, lambda: adapter.step(adapted.action_space.sample()), options.steps),
    }


def _share(env: Any, step: Callable[[], Any], steps: int) -> dict[str, float]:
    learner, spent = env.learner, [0.0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            outcome = function(*arguments)
            spent[0] += time.perf_counter() - start
            return outcome

        return call

    step()
    learner.step, learner.observation = timed(learner.step), timed(learner.observation)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    total = time.perf_counter() - start
    return {
        "ms_per_step": 1000 * total / steps,
        "overhead_ms": 1000 * (total - spent[0]) / steps,
        "overhead_percent": 100 * (total - spent[0]) / spent[0],
    }


def memory(options: Any) -> dict[str, Any]:
    """Sum up the arrays of PPO's rollout buffer."""
    import numpy as np

    from agents import sb3
    from agents.sb3.config import AgentConfig

    overrides = {"data.image_size": options.image_size}
    config = AgentConfig(experiment="quickstart", overrides=overrides, num_envs=options.views, device="cpu")
    model: Any = sb3.make_model("ppo", sb3.make_vec_env(config), config)
    arrays = {n: v.nbytes for n, v in vars(model.rollout_buffer).items() if isinstance(v, np.ndarray)}
    return {"views": options.views, "n_steps": model.n_steps, "bytes": arrays, "MiB": sum(arrays.values()) / 2**20}


def learning(options: Any) -> dict[str, Any]:
    """Let every agent live through equally many trainings, then judge it, frozen, on trainings it has not seen."""
    import numpy as np

    import agents
    from astra_env.envs import InstanceAttackStrategyVectorEnv, play

    env = InstanceAttackStrategyVectorEnv(options.views, options.experiment, autoreset_mode="next_step")
    curves: dict[str, list[list[dict[str, float]]]] = {}
    evaluation: dict[str, list[float]] = {}
    for name in ("ppo", "a2c", "reinforce", "random"):
        curves[name], evaluation[name] = [], []
        for seed in range(options.seeds):
            start = time.perf_counter()
            curve: list[dict[str, float]] = []
            if name in ("ppo", "a2c"):
                policy: Any = _sb3_agent(name, seed, options, curve)
            else:
                context = agents.Context(env.space, seed=seed)
                arguments = {"preset": "improved", "width": 8} if name == "reinforce" else {}
                policy = agents.make(name, context=context, **arguments)
                for training in range(options.trainings if name == "reinforce" else 0):
                    play(env, policy, seed=1000 * seed + training, learn=True, listener=_keeper(curve))
            judged = [play(env, policy, seed=10**6 + number).mean_reward for number in range(options.evaluations)]
            curves[name].append(curve)
            evaluation[name].append(float(np.mean(judged)))
            print(f"{name} seed {seed}: {evaluation[name][-1]:+.4f} in {time.perf_counter() - start:.0f} s", flush=True)
    margins = {name: _margin(values, evaluation["random"]) for name, values in evaluation.items() if name != "random"}
    return {"evaluation": evaluation, "margin_over_random": margins, "curves": curves}


SHOWN = {name: name for name in ("mean_epsilon", "mean_steps", "mean_step_size")} | {"reward": "mean_reward"}


def _sb3_agent(name: str, seed: int, options: Any, curve: list[dict[str, float]]) -> Any:
    from agents import sb3
    from agents.sb3.config import AgentConfig

    config = AgentConfig(
        experiment=options.experiment, num_envs=options.views, algo=name, seed=seed, width=8, device="cpu"
    )
    env = sb3.make_vec_env(config)
    model = sb3.make_model(name, env, config)
    steps = options.trainings * env.get_attr("learner")[0].total_steps
    keep = _keeper(curve)

    def listen(local: dict[str, Any], _: dict[str, Any]) -> bool:
        keep(0, local["infos"][0])
        return True

    return model.learn(steps * options.views, callback=listen)


def _keeper(curve: list[dict[str, float]]) -> Callable[[int, dict[str, float]], None]:
    return lambda _, scalars: curve.append({name: round(scalars[told], 5) for name, told in SHOWN.items()})


def _margin(values: list[float], random: list[float]) -> dict[str, float]:
    import numpy as np

    difference = float(np.mean(values) - np.mean(random))
    return {"difference": difference, "seed_noise": float(max(np.std(values, ddof=1), np.std(random, ddof=1)))}


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _rl_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("gymnasium", "stable-baselines3", "numpy")}


if __name__ == "__main__":
    sys.exit(run_main(main))
