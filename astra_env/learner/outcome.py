"""Rewards that are the goal: how much a stretch of training has raised a held-out measure of robustness.

The held-out images are in neither the training nor the test set; they, their augmentation and the start of the
reference attack are the same in every measurement, so that the measure depends on the weights alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astra_env.errors import ConfigError, InputError
from astra_env.registry import Registry
from astra_env.rewards import REWARDS
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
        """Refuse what is no number; whether a length fits its norm, :meth:`attack` says."""
        for name, least in (("images", 2), ("steps", 0), ("every", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ConfigError(f"{ARGUMENTS}.{name}: expected an integer >= {least}, got {value!r}")
        for name in ("epsilon", "step_size"):
            if getattr(self, name) is not None:
                parse_number(f"{ARGUMENTS}.{name}", getattr(self, name))

    @property
    def measurement(self) -> "Reference":
        """The attack of a reward's measurements and how many images it needs: its own fields."""
        return self

    def attack(self, norm: str) -> Attack:
        """Return the attack in the norm of training; raises ConfigError naming a length that is outside its units."""
        epsilon = parse_number(f"{ARGUMENTS}.epsilon", self.epsilon)
        size = 1.25 * epsilon / max(1, self.steps)
        if self.step_size is not None:
            size = parse_number(f"{ARGUMENTS}.step_size", self.step_size)
        try:
            return Attack(epsilon, size, self.steps, norm)
        except InputError as error:
            raise ConfigError(f"{ARGUMENTS}.{error}") from error


class HeldOut(Protocol):
    """What an outcome is measured on; each kind of learner has its own.

    Attributes:
        trained: the network in training.
        images: the held-out images, float (H, 3, S, S) in [0, 1].
        labels: their labels, int64 (H,); negative where there are none.
        norm: of the attacks' ball.
    """

    trained: nn.Module
    images: Tensor
    labels: Tensor
    norm: str

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The network that would be used if training ended now: the trained one, or an average of its past."""

    @abstractmethod
    def robust_loss(self, attack: Reference, *, differentiable: bool = False) -> Tensor:
        """Return the loss under attack in eval mode, float64: of encoders NT-Xent, of classifiers cross-entropy.

        Args:
            attack: the reference attack.
            differentiable: of the trained network, with the graph for a gradient with respect to its parameters.
        """

    @abstractmethod
    def embeddings(self, images: Tensor) -> Tensor:
        """Images (n, 3, S, S) -> features that a linear classifier would use (n, E), in eval mode, with gradient."""

    @abstractmethod
    def attacked(self, images: Tensor, labels: Tensor, classify: Any, attack: Reference) -> Tensor:
        """Return ``images`` attacked to raise the cross-entropy of ``classify(embeddings(images))``."""


class OutcomeReward(Protocol):
    """A reward measured on held-out images: :meth:`begin` comes before a stretch of training, :meth:`end` after it."""

    @property
    @abstractmethod
    def measurement(self) -> Reference:
        """The attack of its measurements and how many images it needs."""

    @abstractmethod
    def form(self, held_out: HeldOut) -> dict[str, Tensor]:
        """Return tensors of the shapes and dtypes that :meth:`begin` returns, for the check of a saved state.

        Raises ConfigError when it cannot be measured on such images.
        """

    @abstractmethod
    def begin(self, held_out: HeldOut) -> dict[str, Tensor]:
        """Return what has to be known of the network before the stretch of training."""

    @abstractmethod
    def end(self, held_out: HeldOut, before: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return the reward, a scalar, and what :meth:`begin` would return now where that is known, else None."""


class Progress(Reference, ABC):
    """A measure's growth; over a whole training undiscounted rewards add up to its last value minus its first."""

    @abstractmethod
    def measure(self, held_out: HeldOut) -> Tensor:
        """Return the measure, a float64 scalar; more is better."""

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

    def form(self, held_out: HeldOut) -> dict[str, Tensor]:
        """Return a measure's form; raises ConfigError for images without labels."""
        if bool((held_out.labels < 0).any()):
            raise ConfigError(
                "learner.reward: probe_progress needs labelled images; choose robust_progress, which needs none"
            )
        return super().form(held_out)

    def measure(self, held_out: HeldOut) -> Tensor:
        """Return the robust accuracy, in [0, 1]."""
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

    def form(self, held_out: HeldOut) -> dict[str, Tensor]:
        """Return the form of weights and gradient, each in one row."""
        weights = _flat(_trained(held_out))
        return {"weights": weights, "gradient": weights}

    def begin(self, held_out: HeldOut) -> dict[str, Tensor]:
        """Remember the weights and the gradient."""
        parameters = _trained(held_out)
        loss = held_out.robust_loss(self, differentiable=True)
        gradient = torch.autograd.grad(loss, parameters, allow_unused=True)
        known = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradient, strict=True)]
        return {"weights": _flat(parameters), "gradient": _flat(known)}

    def end(self, held_out: HeldOut, before: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return the cosine."""
        change = _flat(_trained(held_out)) - before["weights"]
        return F.cosine_similarity(change.double(), -before["gradient"].double(), dim=0), None


def register_outcomes(registry: Registry[Any]) -> None:
    """Add the outcome rewards to a learner's registry of rewards."""
    registry.register("robust_progress")(RobustProgress)
    registry.register("probe_progress")(ProbeProgress)
    registry.register("gradient_alignment")(GradientAlignment)


register_outcomes(REWARDS)


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


def _trained(held_out: HeldOut) -> list[nn.Parameter]:
    return [parameter for parameter in held_out.trained.parameters() if parameter.requires_grad]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])
