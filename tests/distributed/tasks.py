"""What the processes of a test do; the same functions, alone, give what they are compared with.

In float64 wherever an attack takes part: its steps follow the sign of a gradient, and rounding in another order flips
the sign of one that is nearly zero.
"""

from pathlib import Path
from typing import Any

import torch

import agents
from astra_env.config import ExperimentConfig
from astra_env.configuration import load_config, to_yaml
from astra_env.distributed import SharedRun, World
from astra_env.interaction import interact
from astra_env.learner import ContrastiveLearner
from astra_env.run_directory import RunDirectory
from astra_env.strategy import AttackStrategy
from astra_env.trainer import Trainer

SMALL = {"target.norm": "group", "probe.enabled": False, "learner.total_steps": 6, "learner.learning_rate": 2.0}


class PreciseLearner(ContrastiveLearner):
    """Computes in float64 from the same views."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        torch.set_default_dtype(torch.float64)
        super().__init__(*arguments, **options)
        torch.set_default_dtype(torch.float32)

    def augment(self, images: torch.Tensor) -> torch.Tensor:
        return super().augment(images).double()


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
    learner, policy = learner_and_policy(world, **{"target.norm": "branch"})
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


def train(world: World, place: Path, until: int, resume: bool = False) -> dict[str, Any]:
    """Run the trainer in ``place`` up to a step and save, as a signal after it would have it."""
    learner, policy = learner_and_policy(world)
    config = learner.config
    with SharedRun(world, place, lambda: RunDirectory(place, to_yaml(config), resume=resume)) as run:
        trainer = Trainer(config, learner, policy, run, progress=False)
        assert trainer.restore() == resume
        began = learner.step_count
        with trainer._bar() as bar:
            while learner.step_count < until:
                trainer._step(bar)
        trainer._save()
        lines = run.metrics()
    return {"began": began, "weights": weights(learner.target), "policy": weights(policy.network), "lines": lines}
