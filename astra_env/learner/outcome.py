"""Rewards that are the goal: how much a stretch of training has raised a held-out measure of robustness.

The held-out images are in neither the training nor the test set; they, their augmentation and the start of the
reference attack are the same in every measurement, so that the measure depends on the weights alone.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.data import ImageDataset
from astra_env.data.subsets import split_validation
from astra_env.errors import ConfigError, DataError, InputError
from astra_env.registry import Registry
from astra_env.rewards import REWARDS
from astra_env.storage.state import Either
from astra_env.strategy import Attack, parse_number

ARGUMENTS = "learner.reward_args"
SEED = 0
"""Of everything about a measurement, whatever the run's seed: the same images are held out of every run."""
RIDGE = 1e-2
"""Weight of the closed-form probe's penalty, relative to the mean squared length of its features."""


@dataclass(frozen=True)
class Reference:
    """The fixed attack that measures robustness, and how many images it is tried on.

    Args:
        images: held-out images.
        epsilon: radius in [0, 1] pixel units.
        steps: gradient steps; one alone would be fooled by a network that has learnt to fool it.
        step_size: default 1.25 * epsilon / steps.
        every: training steps from one measurement to the next; default the environment's ``env.chunk_steps``.
    """

    images: int = 64
    epsilon: float | str = "8/255"
    steps: int = 3
    step_size: float | str | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers outside their units."""
        for name, least in (("images", 2), ("steps", 0), ("every", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ConfigError(f"{ARGUMENTS}.{name}: expected an integer >= {least}, got {value!r}")
        try:
            self.attack("linf")
        except InputError as error:
            raise ConfigError(f"{ARGUMENTS}.{error}") from error

    def attack(self, norm: str) -> Attack:
        """Return the attack in the norm of training; raises ConfigError or InputError naming a bad number."""
        epsilon = parse_number(f"{ARGUMENTS}.epsilon", self.epsilon)
        size = 1.25 * epsilon / max(1, self.steps)
        if self.step_size is not None:
            size = parse_number(f"{ARGUMENTS}.step_size", self.step_size)
        return Attack(epsilon, size, self.steps, norm)


class HeldOut(Protocol):
    """What an outcome is measured on; each kind of learner has its own.

    Attributes:
        images: the held-out images, float (H, 3, S, S) in [0, 1].
        labels: their labels, int64 (H,); negative where there are none.
    """

    images: Tensor
    labels: Tensor

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The network that would be used if training ended now."""

    @abstractmethod
    def robust_loss(self, attack: Reference, *, differentiable: bool = False) -> Tensor:
        """Return the loss under attack in eval mode, float64: of encoders NT-Xent, of classifiers cross-entropy.

        Args:
            attack: the reference attack.
            differentiable: keep the graph for a gradient with respect to the network's parameters.
        """

    @abstractmethod
    def embeddings(self, images: Tensor) -> Tensor:
        """Images (n, 3, S, S) -> features that a linear classifier would use (n, E), in eval mode, with gradient."""

    @abstractmethod
    def attacked(self, images: Tensor, labels: Tensor, classify: Any, attack: Reference) -> Tensor:
        """Return ``images`` attacked to raise the cross-entropy of ``classify(embeddings(images))``."""


class OutcomeReward(Protocol):
    """A reward that is measured on held-out images: :meth:`begin` before the first step of a stretch, then :meth:`end`.

    Attributes:
        measurement: the reference attack and how many images it needs.
    """

    @property
    @abstractmethod
    def measurement(self) -> Reference:
        """The attack of its measurements."""

    @abstractmethod
    def form(self, held_out: HeldOut) -> dict[str, Tensor]:
        """Return tensors of the shapes and dtypes that :meth:`begin` returns, for the check of a saved state."""

    @abstractmethod
    def begin(self, held_out: HeldOut) -> dict[str, Tensor]:
        """Return what has to be known of the network before the stretch of training."""

    @abstractmethod
    def end(self, held_out: HeldOut, before: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return the reward, a scalar, and what :meth:`begin` would return now where that is known, else None."""


class Progress(Reference):
    """A measure's growth; over a whole training undiscounted rewards add up to its last value minus its first."""

    @property
    def measurement(self) -> Reference:
        """The attack of its measurements."""
        return self

    def measure(self, held_out: HeldOut) -> Tensor:
        """Return the measure, a float64 scalar; more is better."""
        raise NotImplementedError

    def form(self, held_out: HeldOut) -> dict[str, Tensor]:
        """Return a measure's form."""
        return {"measure": torch.zeros((), dtype=torch.float64)}

    def begin(self, held_out: HeldOut) -> dict[str, Tensor]:
        """Measure."""
        return {"measure": self.measure(held_out)}

    def end(self, held_out: HeldOut, before: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Measure again and return the difference."""
        now = self.begin(held_out)
        return now["measure"] - before["measure"], now


@dataclass(frozen=True)
class RobustProgress(Progress):
    """Growth of minus the held-out loss under attack: NT-Xent, which needs no labels, or cross-entropy."""

    def measure(self, held_out: HeldOut) -> Tensor:
        """Return minus the loss."""
        return -held_out.robust_loss(self)


@dataclass(frozen=True)
class ProbeProgress(Progress):
    """Growth of the robust accuracy of a closed-form probe: ridge regression on half of the held-out embeddings.

    The other half is attacked through the probe. Needs labels; the accuracy has steps of 2 / ``images``.
    """

    images: int = 256

    def measure(self, held_out: HeldOut) -> Tensor:
        """Return the robust accuracy, in [0, 1]."""
        if bool((held_out.labels < 0).any()):
            raise ConfigError(
                "learner.reward: probe_progress needs labelled images; choose robust_progress, which needs none"
            )
        by_class = torch.argsort(held_out.labels, stable=True)
        fitted, tested = by_class[0::2], by_class[1::2]
        classes = int(held_out.labels.max()) + 1
        with torch.no_grad():
            classify = ridge(held_out.embeddings(held_out.images[fitted]), held_out.labels[fitted], classes)
        images, labels = held_out.images[tested], held_out.labels[tested]
        attacked = held_out.attacked(images, labels, classify, self)
        with torch.no_grad():
            right = classify(held_out.embeddings(attacked)).argmax(1) == labels
        return right.double().mean()


@dataclass(frozen=True)
class GradientAlignment(Reference):
    """Cosine of the weights' change with the direction in which the held-out loss under attack falls fastest."""

    @property
    def measurement(self) -> Reference:
        """The attack of its measurements."""
        return self

    def form(self, held_out: HeldOut) -> dict[str, Tensor]:
        """Return the form of weights and gradient, each in one row."""
        weights = _flat([p for p in held_out.network.parameters() if p.requires_grad])
        return {"weights": weights, "gradient": weights}

    def begin(self, held_out: HeldOut) -> dict[str, Tensor]:
        """Remember the weights and the gradient."""
        parameters = [p for p in held_out.network.parameters() if p.requires_grad]
        loss = held_out.robust_loss(self, differentiable=True)
        gradient = torch.autograd.grad(loss, parameters, allow_unused=True)
        known = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradient, strict=True)]
        return {"weights": _flat(parameters), "gradient": _flat(known)}

    def end(self, held_out: HeldOut, before: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return the cosine."""
        change = _flat([p for p in held_out.network.parameters() if p.requires_grad]) - before["weights"]
        return F.cosine_similarity(change.double(), -before["gradient"].double(), dim=0), None


def register_outcomes(registry: Registry[Any]) -> None:
    """Add the outcome rewards to a learner's registry of rewards."""
    registry.register("robust_progress")(RobustProgress)
    registry.register("probe_progress")(ProbeProgress)
    registry.register("gradient_alignment")(GradientAlignment)


register_outcomes(REWARDS)


def not_tried(reward: str) -> str:
    """Return the message of a learner that is to try an attack for a reward of the outcome."""
    return (
        f"learner.reward: {reward!r} is measured by training, so no attack can be tried without it; choose a reward of "
        "damage, or a policy that learns from the steps themselves (norm group)"
    )


class Outcome:
    """Measures an outcome reward while a learner trains.

    Args:
        reward: what is measured.
        held_out: on what.
        every: steps from one measurement to the next.
    """

    def __init__(self, reward: OutcomeReward, held_out: HeldOut, every: int) -> None:
        self.reward = reward
        self.held_out = held_out
        self.every = reward.measurement.every or every
        self._before: dict[str, Tensor] | None = None

    def before_step(self) -> None:
        """Measure, where a stretch of training begins and the last one's end is not its beginning."""
        if self._before is None:
            self._before = self.reward.begin(self.held_out)

    def after_step(self, done: int, finished: bool) -> Tensor:
        """Return the reward after step number ``done`` (from 1): zero but at the end of a stretch."""
        if self._before is None or (done % self.every and not finished):
            return self.held_out.images.new_zeros(())
        reward, self._before = self.reward.end(self.held_out, self._before)
        return reward.to(self.held_out.images.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is known of the stretch's beginning; empty before its first step."""
        return {name: value.clone() for name, value in (self._before or {}).items()}

    def state_form(self) -> Either:
        """Return the form of its states: the measurement at the beginning of a stretch, or nothing."""
        return Either(self.reward.form(self.held_out), {})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue where ``state`` was taken."""
        device = self.held_out.images.device
        self._before = {name: value.to(device, copy=True) for name, value in state.items()} or None


def hold_out(dataset: ImageDataset, count: int) -> tuple[ImageDataset, ImageDataset]:
    """Split off ``count`` images for measurements, every class in proportion where there are labels.

    Returns (training images, held-out images); raises ConfigError when there are too few.
    """
    if count >= len(dataset):
        raise ConfigError(
            f"{ARGUMENTS}.images: {count} images are to be held out of the {len(dataset)} of {dataset.name!r}, which "
            "leaves none to train on; lower it"
        )
    if dataset.classes and not bool((dataset.labels < 0).any()) and count >= len(dataset.classes):
        try:
            return split_validation(dataset, count, SEED)
        except DataError as error:
            raise ConfigError(f"{ARGUMENTS}.images: {error}") from error
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(SEED))
    held, kept = order[:count].sort().values, order[count:].sort().values
    return dataset.subset(kept), dataset.subset(held)


def ridge(features: Tensor, labels: Tensor, classes: int) -> Any:
    """Return the classifier (n, E) -> scores (n, C) that ridge regression to one-hot labels gives in closed form."""
    mean, scale = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    x = ((features - mean) / scale).double()
    targets = F.one_hot(labels, classes).double()
    gram = x @ x.T
    penalty = RIDGE * gram.diagonal().mean()
    weights = (x.T @ torch.linalg.solve(gram + penalty * torch.eye(len(x), device=x.device), targets)).to(features)
    offset = targets.mean(0).to(features)
    return lambda given: ((given - mean) / scale) @ weights + offset


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])
