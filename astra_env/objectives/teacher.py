"""A SimCLR training as short as it gets: the teacher that DeACL needs when it is given none."""

from collections.abc import Mapping
from typing import Any

import torch

from astra_env.augment.simclr import build_augment
from astra_env.data import BatchSampler
from astra_env.errors import Diverged
from astra_env.losses import nt_xent
from astra_env.models import Target
from astra_env.objectives.base import Encoder, Setting
from astra_env.optim import LARS, warmup_cosine
from astra_env.randomness import derive_seed, generator
from astra_env.storage.state import Either, load_parts, require_count

WARMUP = 0.1
"""Share of the steps in which the learning rate rises."""


class TeacherTraining:
    """Trains ``network`` in place by NT-Xent of clean views with the run's images, views and batch size.

    It goes step by step, so that it can be watched, saved and continued; at the end the network is frozen.

    Args:
        network: the teacher.
        setting: the run's.
        steps: length of the training; 0 for a teacher that is trained already.
        learning_rate: of LARS, at its height.

    Attributes:
        done: steps taken so far.
    """

    def __init__(self, network: Target, setting: Setting, steps: int, learning_rate: float) -> None:
        self.network = network.requires_grad_(False).eval()
        self.setting = setting
        self.steps = steps
        self.learning_rate = learning_rate
        self.done = 0
        config, images = setting.config, setting.dataset
        self._temperature = config.learner.temperature
        self._augment = build_augment(config, images.images.shape[-1])
        self._sampler = BatchSampler(len(images), config.learner.batch_size, derive_seed(config.seed, "teacher"))
        self._views = generator(config.seed, "teacher views")
        self._encode = Encoder(network)
        self._optimizer = LARS(network.parameters(), learning_rate)

    @property
    def left(self) -> int:
        """Steps that are left."""
        return self.steps - self.done

    def step(self) -> None:
        """Take one step.

        Raises:
            Diverged: when the loss is not finite at the end.
        """
        self.network.requires_grad_(True)
        images = self.setting.dataset.gather(next(self._sampler), self.setting.device)
        loss = nt_xent(self._encode(self._augment(images, self._views), "clean"), self._temperature)
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate * warmup_cosine(self.done, self.steps, round(WARMUP * self.steps), 0.0)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self.done += 1
        if not self.left:
            self._freeze()
            if not bool(torch.isfinite(loss)):
                raise Diverged(f"the teacher's training diverged: loss {loss.item()}; lower teacher_learning_rate")

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher and, until it is trained, what its training goes on with."""
        going_on = {
            "optimizer": self._optimizer.state_dict(),
            "sampler": self._sampler.state_dict(),
            "views": self._views.get_state(),
        }
        weights = self.network.state_dict()
        return {"teacher": weights, "taught": self.done, "teaching": going_on if self.left else {}}

    def state_form(self) -> dict[str, Any]:
        """Return what a state looks like, before, during and after the training."""
        return {**self.state_dict(), "teaching": Either(self._owners(), instead={})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``state`` was taken."""
        self.done = require_count("objective.taught", state["taught"], self.steps)
        self.network.load_state_dict(state["teacher"])
        if self.left:
            load_parts(self._owners(), state["teaching"])
        else:
            self._freeze()

    def _owners(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer, "sampler": self._sampler, "views": self._views}

    def _freeze(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._optimizer.state.clear()
        self.network.requires_grad_(False).eval()
