"""What both environments share: the training behind an episode, how it starts, is saved, restored and forked."""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from gymnasium.error import ResetNeeded

from astra_env.config.reading import load_config
from astra_env.config.schema import ExperimentConfig
from astra_env.distributed import ALONE, World
from astra_env.errors import CheckpointError, Diverged, InputError
from astra_env.learner.make import learner_class, make_learner, training_images
from astra_env.learner.protocol import Learner, StepReport
from astra_env.randomness import random_state, set_random_state
from astra_env.storage.checkpoint import load_checkpoint, save_checkpoint
from astra_env.strategy import AttackStrategy, StrategySpace

OPTIONS = ("checkpoint", "reset_mask")
SEED_LIMIT = 2**31


class TrainingEnv:
    """Mixin of the environments: owns the configuration, the images and the learner of the present episode.

    Args:
        config: preset name, path of a YAML file, or mapping.
        overrides: values by dotted key, such as ``{"learner.batch_size": 16}``.

    Raises:
        ConfigError, DataError: naming the field that cannot be used.
    """

    np_random: np.random.Generator
    world: World = ALONE
    OWN: ClassVar[tuple[str, ...]] = ("_np_random", "action_space", "observation_space", "_recorder")
    """What a fork copies instead of sharing it."""

    def __init__(
        self,
        config: str | Mapping[str, Any] = "quickstart",
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.config: ExperimentConfig = load_config(ExperimentConfig, config, overrides)
        self.space = StrategySpace.of(self.config)
        self.dataset = training_images(self.config, self.world)
        self.over = True
        self.diverged = False
        self._seed = self.config.seed
        self._learner: Learner | None = None

    @property
    def learner(self) -> Learner:
        """The learner of the present episode; building it is the first thing that needs the network's memory."""
        if self._learner is None:
            self._build(self._seed)
        assert self._learner is not None
        return self._learner

    @property
    def image_size(self) -> int:
        """Side of the views in pixels."""
        return learner_class(self.config.learner.kind).view_size(self.config, self.dataset)

    def state_dict(self) -> dict[str, Any]:
        """Return everything the rest of the episode and later ones depend on: tensors and plain values, copied.

        The network's weights lie under ``"target"``, where the evaluation tools look for them.
        """
        learner = copy.deepcopy(self.learner.state_dict())
        return {
            "env": type(self).__name__,
            "target": learner.pop("target"),
            "learner": learner,
            "seed": self._seed,
            "random": random_state(self.np_random),
            "over": self.over,
            "diverged": self.diverged,
            "episode": copy.deepcopy(self._episode_state()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``state`` was taken; raises CheckpointError when it belongs to something else."""
        state = copy.deepcopy(dict(state))
        if state.get("env") != type(self).__name__:
            raise CheckpointError(
                f"checkpoint: expected a state of {type(self).__name__}, got one of {state.get('env')!r}"
            )
        try:
            if self._learner is None or self._seed != int(state["seed"]):
                self._build(int(state["seed"]))
            self.learner.load_state_dict({**state["learner"], "target": state["target"]})
            set_random_state(self.np_random, state["random"])
            self.over, self.diverged = bool(state["over"]), bool(state["diverged"])
            self._load_episode_state(state["episode"])
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"checkpoint: not a complete state of {type(self).__name__} ({type(error).__name__}: {error})"
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the state to ``path`` atomically; raises CheckpointError when the disk refuses."""
        save_checkpoint(path, self.state_dict())

    def load(self, path: str | Path) -> None:
        """Continue where the file was written; raises CheckpointError when it cannot be used."""
        self.load_state_dict(load_checkpoint(path))

    def fork(self) -> Self:
        """Return an independent copy that continues identically; the images are shared, nothing else is."""
        twin = copy.copy(self)
        for name in self.OWN:
            setattr(twin, name, copy.deepcopy(getattr(self, name)))
        twin._learner = None
        twin.load_state_dict(self.state_dict())
        return twin

    def _episode_state(self) -> dict[str, Any]:
        """Return what the environment knows of the episode beyond the learner."""
        return {}

    def _load_episode_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`_episode_state` returned."""

    def _begin(self, seed: int | None, options: Mapping[str, Any] | None) -> None:
        """Make the learner ready for an episode, by the rules in the environments' docstrings."""
        checkpoint = _checked_options(options).get("checkpoint")
        keep = self.config.env.reset_mode == "continue" and not self.diverged
        if seed is not None:
            self._build(seed)
        elif self._learner is None:
            self._build(self.config.seed)
        elif checkpoint is not None or not keep:
            self._build(int(self.np_random.integers(SEED_LIMIT)))
        elif self.learner.finished:
            self.learner.begin_again()
        if checkpoint is not None:
            self.learner.warm_start(str(checkpoint))
        self.over = self.diverged = False

    def _build(self, seed: int) -> None:
        self._seed = seed
        config = copy.copy(self.config)
        config.seed = seed
        self._learner = make_learner(config, self.dataset, self.world)

    def _require_running(self) -> None:
        """Raise ResetNeeded when no episode has begun or the last one is over."""
        if self.over:
            raise ResetNeeded("the episode is over or has not begun: call reset() before step()")

    def _train(self, strategy: AttackStrategy) -> tuple[StepReport, dict[str, float]]:
        """Train on one minibatch.

        Raises:
            Diverged: when loss, gradient or reward is not finite.
        """
        report = self.learner.step(strategy)
        scalars = report.scalars()
        if not math.isfinite(scalars["reward"]):
            raise Diverged(f"training diverged at step {report.step}: reward is {scalars['reward']}")
        return report, scalars


def _checked_options(options: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the options of a reset; raises InputError for one that does not exist or asks for part of the batch."""
    options = options or {}
    for name in options:
        if name not in OPTIONS:
            raise InputError(f"options: expected 'checkpoint' (path of a checkpoint to start from), got {name!r}")
    if not np.all(options.get("reset_mask", True)):
        raise InputError("options.reset_mask: all views belong to one training, so they can only be reset together")
    return options
