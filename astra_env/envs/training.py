"""What both environments share: the training behind an episode, how it starts, is saved, restored and forked."""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded

from astra_env.config.plain import plain
from astra_env.config.reading import load_config, presets, read_source
from astra_env.config.schema import ExperimentConfig
from astra_env.distributed import ALONE, World
from astra_env.errors import CheckpointError, Diverged, InputError
from astra_env.learner.make import learner_class, make_learner, training_images
from astra_env.learner.protocol import Learner, StepReport
from astra_env.modes import at_the_door
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

    Attributes:
        scalars: everything the learner reported of the last minibatch, by its own names.
        error: why training diverged, or None.
        seeded: whether the first episode has the configuration's seed when none is given; else one from entropy.
    """

    np_random: np.random.Generator
    world: World = ALONE
    OWN: ClassVar[tuple[str, ...]] = ("_np_random", "action_space", "observation_space", "_recorder")
    """What a fork copies instead of sharing it."""

    @at_the_door
    def __init__(
        self,
        config: str | Mapping[str, Any] = "quickstart",
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.config: ExperimentConfig = load_config(ExperimentConfig, config, overrides)
        self.space = StrategySpace.of(self.config)
        self.dataset = training_images(self.config, self.world)
        self.over = True
        self.price = 0.0
        self.diverged = False
        self.error: str | None = None
        self.scalars: dict[str, float] = {}
        self.seeded = not self.world.alone or _names_a_seed(config, overrides)
        self._seed = self.config.seed
        self._learner: Learner | None = None
        self._spec: EnvSpec | None = None

    @property
    def learner(self) -> Learner:
        """The learner of the present episode; building it is the first thing that needs the network's memory."""
        if self._learner is None:
            self._build(self._first_seed())
        assert self._learner is not None
        return self._learner

    @property
    def spec(self) -> EnvSpec | None:
        """How Gymnasium makes this environment again: plain values only, with the longest episode where it is known."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        if spec is not None:
            spec = copy.copy(spec)
            given = {name: spec.kwargs[name] for name in ("config", "overrides") if name in spec.kwargs}
            spec.kwargs = {**spec.kwargs, **{name: plain(value, name) for name, value in given.items()}}
            if spec.max_episode_steps is None:
                spec.max_episode_steps = self._longest_episode()
        self._spec = spec

    @property
    def image_size(self) -> int:
        """Side of the views in pixels."""
        return learner_class(self.config.learner.kind).view_size(self.config, self.dataset)

    @at_the_door
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
            "spending": {} if self.learner.meter is None else self.learner.meter.state_dict(),
            "random": random_state(self.np_random),
            "over": self.over,
            "diverged": self.diverged,
            "episode": copy.deepcopy(self._episode_state()),
        }

    @at_the_door
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
            if self.learner.meter is not None and state.get("spending"):
                self.learner.meter.load_state_dict(state["spending"])
            set_random_state(self.np_random, state["random"])
            self.over, self.diverged = bool(state["over"]), bool(state["diverged"])
            self._load_episode_state(state["episode"])
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"checkpoint: not a complete state of {type(self).__name__} ({type(error).__name__}: {error})"
            ) from error

    @at_the_door
    def save(self, path: str | Path) -> None:
        """Write the state to ``path`` atomically; raises CheckpointError when the disk refuses."""
        save_checkpoint(path, self.state_dict())

    @at_the_door
    def load(self, path: str | Path) -> None:
        """Continue where the file was written; raises CheckpointError when it cannot be used."""
        self.load_state_dict(load_checkpoint(path))

    @at_the_door
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

    def _spending(self) -> dict[str, float]:
        """Return what ``info`` tells of compute: F per view so far, budget left as a share, F per view of the step."""
        left = max(0.0, 1 - self.learner.progress)
        return {"compute_spent": self.learner.compute_spent, "budget_left": left, "price": self.price}

    def _longest_episode(self) -> int | None:
        """Return how many steps of the environment an episode has at most, where that is known beforehand."""
        return learner_class(self.config.learner.kind).budget_of(self.config, len(self.dataset))

    def _first_seed(self) -> int:
        """Return the seed of a training that nobody seeded: the configuration's if it was named there, else entropy."""
        return self.config.seed if self.seeded else int(self.np_random.integers(SEED_LIMIT))

    def _begin(self, seed: int | None, options: Mapping[str, Any] | None) -> None:
        """Make the learner ready for an episode, by the rules in the environments' docstrings."""
        checkpoint = _checked_options(options).get("checkpoint")
        keep = self.config.env.reset_mode == "continue" and not self.diverged
        if seed is not None:
            self._build(seed)
        elif self._learner is None:
            self._build(self._first_seed())
        elif checkpoint is not None or not keep:
            self._build(int(self.np_random.integers(SEED_LIMIT)))
        elif self.learner.finished:
            self.learner.begin_again()
        if checkpoint is not None:
            self.learner.warm_start(str(checkpoint))
        self.over = self.diverged = False
        self.error, self.scalars = None, {}

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
        self.scalars = scalars = report.scalars()
        if not math.isfinite(scalars["reward"]):
            raise Diverged(f"training diverged at step {report.step}: reward is {scalars['reward']}")
        return report, scalars


def _checked_options(options: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the options of a reset; raises InputError for one that does not exist."""
    options = options or {}
    for name in options:
        if name not in OPTIONS:
            raise InputError(f"options: expected 'checkpoint' (path of a checkpoint to start from), got {name!r}")
    return options


def _names_a_seed(config: str | Mapping[str, Any], overrides: Mapping[str, Any] | None) -> bool:
    """Whether the caller's own words hold a seed; that of a shipped preset is nobody's choice."""
    if "seed" in (overrides or {}):
        return True
    return (isinstance(config, Mapping) or str(config) not in presets()) and "seed" in read_source(config)
