"""What a training spends, in F: forward passes of the target network on one view.

A backward pass for the weights costs 2F, one for the images alone 1F. Nothing is assumed about a method: passes are
counted where they happen, so attacks, losses, rewards, held-out measurements, momentum encoders and policies are all
charged what they do.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from astra_env.attacks import in_mode
from astra_env.config.schema import ExperimentConfig
from astra_env.distributed import ALONE, World
from astra_env.errors import CheckpointError, ConfigError
from astra_env.strategy import StrategySpace

TRAINING_PASSES = 6.0
"""F per view of training on its clean and its attacked version."""


class ComputeMeter:
    """Counts the passes of every network it watches; copies made of a watched network are counted with it.

    Args:
        world: the processes that train together.
        at_once: what is counted is spent at once, for learners that never call :meth:`settle`.

    Attributes:
        spent: F spent by all processes, over all views, when :meth:`settle` was last called.
        passes: F spent by this process since then.
    """

    def __init__(self, world: World = ALONE, *, at_once: bool = False) -> None:
        self.spent = 0.0
        self.passes = 0.0
        self._world = world
        self._at_once = at_once
        self._paused = False

    def watch(self, network: nn.Module, weight: float = 1.0) -> None:
        """Count the passes of ``network``, each view of one costing ``weight`` F.

        The first convolution or linear layer stands for the network: it must run once a pass, on all views.
        """
        layer = next((m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)), None)
        if layer is None:
            raise ConfigError(
                f"learner.budget: {type(network).__name__} has neither a convolution nor a linear layer, so its passes "
                "cannot be counted; give the length of the training as learner.total_steps"
            )

        # A closure, not a method: deep copies of the network share it, and with it this meter.
        def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._count(inputs[0], any(p.requires_grad for p in module.parameters(recurse=False)), weight)

        layer.register_forward_pre_hook(count)

    def counted(self, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return ``forward``, the pass of a frozen copy without the network's hooks, with its views counted."""

        def call(views: Tensor) -> Tensor:
            self._count(views, False, 1.0)
            return forward(views)

        return call

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing meanwhile."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def settle(self) -> None:
        """Add what was spent since the last time, by all processes; every one of them must call it."""
        passes, self.passes = self.passes, 0.0
        if not self._world.alone:
            passes = float(self._world.total(torch.tensor(passes, dtype=torch.float64)))
        self.spent += passes

    def state_dict(self) -> dict[str, float]:
        """Return what was spent."""
        return {"passes": self.passes, "spent": self.spent}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on counting; raises CheckpointError for a count that is none."""
        for name, value in state.items():
            if not 0 <= value < math.inf:
                raise CheckpointError(f"checkpoint: compute.{name}: expected a finite number >= 0, got {value}")
        self.passes, self.spent = float(state["passes"]), float(state["spent"])

    def _count(self, views: Tensor, trained: bool, weight: float) -> None:
        if self._paused:
            return
        passes = 1
        if torch.is_grad_enabled():
            passes = 3 if trained else 2 if views.requires_grad else 1
        self.passes += passes * len(views) * weight
        if self._at_once:
            self.settle()


def training_length(
    config: ExperimentConfig, space: StrategySpace, steps_per_epoch: int, *, cheapest: float = TRAINING_PASSES
) -> int:
    """Return the length of a training in steps: an estimate, for schedules, when it is given as ``learner.budget``.

    ``cheapest``: F per view of a step without an attack. Raises ConfigError for a budget that does not pay for a step.
    """
    options = config.learner
    if options.budget is None:
        return options.total_steps or options.epochs * steps_per_epoch
    least = cheapest + 2 * min(space.steps)
    if options.budget < least:
        raise ConfigError(
            f"learner.budget: expected at least the {least:g} F that the cheapest step costs, got {options.budget:g}"
        )
    mean = cheapest + 2 * sum(space.steps) / len(space.steps) + 1
    return max(1, round(options.budget / mean))


def flops(network: nn.Module, views: Tensor) -> int:
    """Return the operations of one forward pass of ``network`` in eval mode, as PyTorch counts them."""
    with in_mode(network), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(views)
    return counter.get_total_flops()


def charge_policy(meter: ComputeMeter, policy: object, target: nn.Module, size: int, device: torch.device) -> None:
    """Charge a policy's own network, if it says it has one (``network``), by its share of the target's operations.

    Args:
        meter: of the learner it acts in.
        policy: who acts.
        target: whose pass on one view is the unit.
        size: side of the views in pixels.
        device: where the networks are.
    """
    network = getattr(policy, "network", None)
    if not isinstance(network, nn.Module):
        return
    view = torch.zeros(1, 3, size, size, device=device)
    with meter.paused():
        weight = flops(network, view) / flops(target, view)
    meter.watch(network, weight)
