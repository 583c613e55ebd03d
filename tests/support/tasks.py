"""What the processes of a test do; the same functions, alone, give what they are compared with.

In float64 wherever an attack takes part: its steps follow the sign of a gradient, and rounding in another order flips
the sign of one that is nearly zero.
"""

import importlib
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import agents
from astra_env.config.reading import build_parser, from_dict, load_config, parse_command_line, to_yaml
from astra_env.config.schema import ExperimentConfig
from astra_env.data import load_dataset
from astra_env.distributed import SharedRun, World
from astra_env.envs import InstanceAttackStrategyVectorEnv
from astra_env.errors import AstraError
from astra_env.evaluation.campaign.config import EvaluationConfig
from astra_env.evaluation.campaign.results import read_results
from astra_env.evaluation.campaign.runner import evaluate
from astra_env.evaluation.measures import batches, robustness
from astra_env.evaluation.measures.curves import noise_curve
from astra_env.evaluation.measures.robustness import clean_accuracy, robust_accuracy
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.learner.protocol import interact
from astra_env.storage.run_directory import RunDirectory
from astra_env.strategy import Attack, AttackStrategy
from astra_env.training.loop import Callback, Loop
from astra_env.training.trainer import Trainer
from rpat import Trainer as SupervisedTrainer

SMALL = {"target.norm": "group", "probe.enabled": False, "learner.total_steps": 6, "learner.learning_rate": 2.0}


class PreciseLearner(ContrastiveLearner):
    """Computes in float64 from the same views."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        torch.set_default_dtype(torch.float64)
        super().__init__(*arguments, **options)
        torch.set_default_dtype(torch.float32)

    def _augmentation(self, step: int) -> Any:
        augment = super()._augmentation(step)
        return lambda *arguments, **options: augment(*arguments, **options).double()


def learner_and_policy(world: World, **overrides: Any) -> tuple[PreciseLearner, Any]:
    config = load_config(ExperimentConfig, "tiny", {**SMALL, **overrides})
    learner = PreciseLearner(config, world=world)
    context = agents.Context(learner.space, learner.device, 0, learner.total_steps, learner.warmup_steps)
    return learner, agents.make("reinforce", context=context, width=4, blocks=(1, 1))


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten().double() for tensor in module.state_dict().values()])


def steps(world: World, count: int = 3, **overrides: Any) -> dict[str, list[Any]]:
    """Train a few steps under a learning policy and return all there is to compare of each."""
    learner, policy = learner_and_policy(world, **overrides)
    found: dict[str, list[Any]] = {}
    for _ in range(count):
        report = interact(learner, policy)
        seen = {
            "chosen": torch.stack([report.strategy.epsilon, report.strategy.steps.double(), report.strategy.step_size]),
            "views": world.gather(report.views),
            "adversarial": world.gather(report.adversarial),
            "reward": report.reward,
            "gradients": torch.cat([p.grad.flatten() for p in learner.target.parameters() if p.grad is not None]),
            "scalars": torch.stack([report.terms[name] for name in sorted(report.terms)]),
            "weights": weights(learner.target),
            "policy": weights(policy.network),
        }
        with torch.no_grad():
            seen["features"] = world.gather(learner.target.eval()(report.adversarial, branch="adv"))
        for name, value in seen.items():
            found.setdefault(name, []).append(value)
    return found


def uneven_attack(world: World) -> dict[str, torch.Tensor]:
    """Attack the first views longer than all others, so that all ranks but the first are finished early."""
    learner, _ = learner_and_policy(world)
    counts = torch.zeros(32, dtype=torch.int64)
    counts[:3] = torch.tensor([5, 2, 3])
    strategy = AttackStrategy(torch.full((32,), 8 / 255), counts, torch.full((32,), 2 / 255))
    report = learner.step(strategy)
    return {
        "adversarial": world.gather(report.adversarial),
        "reward": report.reward,
        "share": report.terms["zero_gradient_share"],
    }


def batch_norm(world: World) -> dict[str, torch.Tensor]:
    """Train with each rank's own statistics and return what a checkpoint would hold."""
    learner, policy = learner_and_policy(world, **{"target.norm": "branch", "learner.learning_rate": 0.5})
    for _ in range(2):
        interact(learner, policy)
    statistics = {name: value for name, value in learner.target.state_dict().items() if "running" in name}
    return {"weights": weights(learner.target), "statistics": torch.cat([v.flatten() for v in statistics.values()])}


def unused_branch(world: World) -> torch.Tensor:
    """Train on clean views alone: the adversarial branch gets no gradient."""
    learner, policy = learner_and_policy(world, **{"learner.objective": "simclr", "target.norm": "branch"})
    for _ in range(2):
        interact(learner, policy)
    return weights(learner.target)


class SignalAt(Callback):
    """Sends rank 0 a signal after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, loop: Loop, report: Any) -> None:
        if loop.world.main and loop.learner.step_count == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def train(world: World, place: Path, until: int, resume: bool = False) -> dict[str, Any]:
    """Run the trainer in ``place`` up to a step, after which rank 0 gets a signal."""
    learner, policy = learner_and_policy(world)
    config = learner.config
    with SharedRun(world, place, lambda: RunDirectory(place, to_yaml(config), resume=resume)) as run:
        trainer = Trainer(config, learner, policy, run, callbacks=[SignalAt(until)], progress=False)
        assert trainer.restore() == resume
        began = learner.step_count
        assert trainer.fit() == 128 + signal.SIGTERM
        lines = run.metrics()
    return {"began": began, "weights": weights(learner.target), "policy": weights(policy.network), "lines": lines}


def supervised(world: World, place: Path, method: str, **overrides: Any) -> dict[str, Any]:
    """Train a classifier for an epoch, in float64, and measure it."""
    config = {"method": method, "epochs": 1, "network.name": f"{__name__}:plain_network", "network.width": None}
    torch.set_default_dtype(torch.float64)
    trainer = SupervisedTrainer("tiny", {**config, "test.max_images": 40, **overrides}, world)
    torch.set_default_dtype(torch.float32)
    augment = trainer.learner.augment
    trainer.learner.augment = lambda *parts: in_double(*augment(*parts))  # type: ignore[assignment]
    robustness.ordered_batches = ordered_batches_in_double
    try:
        summary = trainer.fit(place)
    finally:
        robustness.ordered_batches = batches.ordered_batches
    average = trainer.learner.average
    return {
        "weights": weights(trainer.learner.model),
        "average": None if average is None else weights(average),
        "test": summary["test"],
        "validation": summary["best_validation"],
        "lines": [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()],
    }


def plain_network(classes: int, normalize: Any = None, width: Any = None, generator: Any = None) -> torch.nn.Module:
    """Return a classifier without BatchNorm, so that a row's logits do not depend on the rows beside it."""
    first, last = torch.nn.Conv2d(3, 6, 3, padding=1, stride=2), torch.nn.Linear(6 * 16, classes)
    with torch.no_grad():
        for layer in (first, last):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / 4)
            layer.bias.zero_()
    return torch.nn.Sequential(first, torch.nn.GELU(), torch.nn.Flatten(), last)


def in_double(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return images.double(), labels.double() if labels.is_floating_point() else labels


def ordered_batches_in_double(*arguments: Any, **options: Any) -> Any:
    return (in_double(*batch) for batch in batches.ordered_batches(*arguments, **options))


def accuracies(world: World) -> dict[str, Any]:
    """Measure a classifier on clean images, under PGD with restarts and under noise, in uneven batches."""
    test = load_dataset("digits", "test", image_size=8)
    network = plain_network(10, generator=torch.Generator().manual_seed(1))
    common = {"batch_size": 17, "max_images": 100, "world": world}
    linf, l2 = Attack.crossing(8 / 255, 3), Attack.crossing(0.2, 3, "l2")
    curve = noise_curve(network, test, radii=(8 / 255, 64 / 255), **common)
    return {
        "clean": clean_accuracy(network, test, **common).as_dict(),
        "linf": robust_accuracy(network, test, linf, restarts=2, **common).as_dict(),
        "l2": robust_accuracy(network, test, l2, restarts=2, **common).as_dict(),
        "noise": curve.as_dict(),
    }


def evaluation(world: World, checkpoint: Path, out: Path) -> dict[str, Any]:
    """Evaluate a checkpoint as the script does, twice: the second time everything is there already."""
    options = {"attacks": ["pgd"], "curves": ["radius", "path"], "head.epochs": 1, "head.augment": False}
    few = {"data.name": "digits", "data.image_size": 8, "data.max_test_images": 40}
    attack = {"attack.steps": 2, "attack.batch_size": 16, "attack.epsilon": ["8/255"]}
    config = load_config(
        EvaluationConfig, {}, {**options, **few, **attack}, package="astra_env.evaluation.campaign.presets"
    )
    for _ in range(2):
        evaluate(config, [checkpoint], out, world=world)
    return (read_results(out) or {}) if world.main else {}


def environment(world: World) -> dict[str, Any]:
    """Train in the instance environment, each process with its share of 16 views."""
    share = world.share(16, "views")
    env = InstanceAttackStrategyVectorEnv(
        16 // world.size,
        config="tiny",
        overrides={"target.norm": "group", "learner.total_steps": 3},
        distributed=world.size > 1,
    )
    env._build = lambda seed: set_learner(env, seed)  # type: ignore[method-assign]
    chance, found = np.random.default_rng(0), []
    observation, _ = env.reset(seed=5)
    for _ in range(3):
        actions = chance.integers(0, env.space.sizes, (16, 3))
        following, rewards, terminated, _, info = env.step(actions[share])
        told = info.get("final_info", info)
        found.append((observation, rewards, told["epsilon"], told["loss"], terminated))
        observation = following
    return {"steps": found, "num_envs": env.num_envs}


def set_learner(env: InstanceAttackStrategyVectorEnv, seed: int) -> None:
    env._seed = seed
    env._learner = PreciseLearner(replace(env.config, seed=seed), env.dataset, env.world)


def refusals(world: World) -> dict[str, str]:
    """Return what is said of what cannot be spread."""
    wrong: dict[str, dict[str, Any]] = {
        "batch": {"learner.batch_size": 18},
        "accumulate": {"learner.accumulate": 16},
        "sync_bn": {"learner.sync_bn": True, "target.norm": "branch"},
        "device": {"device": "cuda:0"},
    }
    said = {}
    for name, overrides in wrong.items():
        try:
            learner_and_policy(world, **overrides)
        except AstraError as error:
            said[name] = str(error)
    return said


def script(world: World, place: Path, arguments: list[str], resume: bool = False) -> None:
    """Train as the script does, in this process group."""
    train_astra = importlib.import_module("astra_env.commands.train")
    values = parse_command_line(build_parser(ExperimentConfig), arguments)
    train_astra.run_training(from_dict(ExperimentConfig, values), place, resume=resume, quiet=True, world=world)
