"""Learners by name: what can be trained under a policy's attacks."""

import inspect
from typing import Any

from astra_env.config.schema import ExperimentConfig
from astra_env.data import ImageDataset
from astra_env.data.training_images import load_training_images
from astra_env.distributed import ALONE, World
from astra_env.errors import ConfigError
from astra_env.learner.contrastive import ContrastiveLearner
from astra_env.learner.protocol import Learner
from astra_env.learner.spending import ComputeMeter
from astra_env.registry import Registry

LEARNERS: Registry[type[Learner]] = Registry("learner.kind", group="astra_env.learners")
"""Classes that follow :class:`astra_env.learner.protocol.Learner`; installed packages add theirs by entry points."""
LEARNERS.register("contrastive")(ContrastiveLearner)

_PARTS = tuple(name for name in vars(Learner) if not name.startswith("_"))
"""What the class of a learner must have; what its instances must have besides is assigned in its constructor."""


def learner_class(kind: str) -> type[Learner]:
    """Return the class called ``kind``.

    Raises:
        ConfigError: for an unknown name, one whose package is not installed, or something that is no learner.
    """
    cls = LEARNERS.get(kind)
    if not inspect.isclass(cls):
        raise ConfigError(f"learner.kind: expected a class, but {kind!r} is {type(cls).__name__}")
    missing = [name for name in _PARTS if not hasattr(cls, name)]
    abstract = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing or abstract:
        raise ConfigError(
            f"learner.kind: {kind!r} cannot train, it lacks {', '.join(missing or abstract)}; derive it from "
            "astra_env.learner.protocol.Learner and write what is abstract there"
        )
    return cls


def training_images(config: ExperimentConfig, world: World = ALONE, *, progress: bool = True) -> ImageDataset:
    """Load the images that the configured learner trains on, onto its device when they fit."""
    split = learner_class(config.learner.kind).split
    return load_training_images(config.data, world.resolve(config.device), split, progress=progress)


def make_learner(config: ExperimentConfig, dataset: ImageDataset | None = None, world: World = ALONE) -> Learner:
    """Build the configured learner.

    Args:
        config: the run's configuration.
        dataset: what :func:`training_images` loads, when it is at hand already.
        world: the ranks over which every batch is spread, by learners that can.

    Raises:
        ConfigError, DataError: naming the field that cannot be used.
    """
    cls: Any = learner_class(config.learner.kind)
    if not cls.spreads and not world.alone:
        raise ConfigError(f"learner.kind: {config.learner.kind!r} runs in one process; start it without torchrun")
    images = dataset if dataset is not None else training_images(config, world)
    learner: Learner = cls(config, images, world) if cls.spreads else cls(config, images)
    if learner.meter is None:
        learner.meter = ComputeMeter(world, at_once=True)
        learner.meter.watch(learner.target)
    return learner
