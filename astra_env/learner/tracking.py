"""Learners that are followed while they train: what they spend, and what comes of it on held-out images."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from astra_env.data import ImageDataset
from astra_env.data.subsets import split_validation
from astra_env.errors import ConfigError, DataError
from astra_env.learner.outcome import ARGUMENTS, SEED, HeldOut, OutcomeReward
from astra_env.learner.protocol import Learner
from astra_env.learner.spending import ComputeMeter
from astra_env.storage.state import Either


class Outcome:
    """Measures an outcome reward while a learner trains.

    Args:
        reward: what is measured.
        held_out: on what.
        every: steps from one measurement to the next, where the reward does not say.

    Raises:
        ConfigError: when the reward cannot be measured so.
    """

    def __init__(self, reward: OutcomeReward, held_out: HeldOut, every: int) -> None:
        reward.measurement.attack(held_out.norm)
        self.reward = reward
        self.held_out = held_out
        self.every = reward.measurement.every or every
        self._form = reward.form(held_out)
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
        return Either(self._form, {})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue where ``state`` was taken."""
        device = self.held_out.images.device
        self._before = {name: value.to(device, copy=True) for name, value in state.items()} or None


class TrackedLearner(Learner):
    """What this package's learners share: a meter, and an outcome when the reward is one.

    Attributes:
        meter: counts what the training spends.
        outcome: measures the reward, when it is one of the outcome.
    """

    meter: ComputeMeter
    outcome: Outcome | None = None

    @property
    def progress_reward(self) -> bool:  # type: ignore[override]
        """Whether the rewards of steps add up: an outcome's comes once a stretch, with zeros before it."""
        return self.outcome is not None

    def tracked(self) -> dict[str, Any]:
        """Return what belongs to the state for it: the meter, where compute is the budget, and the outcome."""
        compute = {} if self.config.learner.budget is None else {"compute": self.meter}
        return compute if self.outcome is None else {**compute, "outcome": self.outcome}

    def settle(self, reward: Tensor) -> Tensor:
        """Count what the step has cost and return its reward: of an outcome, the one that only the update shows."""
        self.meter.settle()
        if self.outcome is None:
            return reward
        reward = self.outcome.after_step(self.step_count, self.finished)
        self.meter.settle()
        return reward

    def require_damage(self) -> None:
        """Raise ConfigError when an attack is to be tried for a reward of the outcome, which only training shows."""
        if self.outcome is not None:
            raise ConfigError(
                f"learner.reward: {self.config.learner.reward!r} is measured by training, so no attack can be tried "
                "without it; choose a reward of damage, or a policy that learns from the steps themselves (norm group)"
            )


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
