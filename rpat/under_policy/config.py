"""From an experiment's configuration to that of the supervised training inside it."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from astra_env.compute import SpeedOptions
from astra_env.config.reading import load_config, to_dict
from astra_env.config.schema import ExperimentConfig, LearnerConfig
from astra_env.errors import ConfigError
from astra_env.strategy import Attack
from rpat.config import PRESET_PACKAGE, RPATConfig
from rpat.methods import Method, Progress

PREFIX = "learner.kind_args"
ELSEWHERE = {
    "seed": "seed",
    "device": "device",
    "data": "data",
    "batch_size": "learner.batch_size",
    "epochs": "learner.epochs",
    "optimizer.learning_rate": "learner.learning_rate",
    "optimizer.momentum": "learner.momentum",
    "optimizer.weight_decay": "learner.weight_decay",
    "norm": "learner.norm",
    "epsilon": "strategy.epsilon, from which the policy chooses",
    "steps": "strategy.steps, from which the policy chooses",
    "step_size": "strategy.step_size, from which the policy chooses",
    "test": "probe",
    "run": "run, and learner for precision, channels_last and the like",
    "validation": "nothing: no model is selected during the run",
}
"""Settings of a supervised run that an experiment says in a place of its own."""


def supervised_config(config: ExperimentConfig, images: int) -> RPATConfig:
    """Return the settled configuration of the supervised training that an experiment describes.

    Args:
        config: the experiment; ``learner.kind_args`` holds what it has no field of its own for.
        images: how many images it trains on.

    Raises:
        ConfigError: naming the field that cannot be used, or that is said elsewhere.
    """
    options = config.learner
    given = options.kind_args
    for name in _names(given):
        place = next((ELSEWHERE[key] for key in ELSEWHERE if name == key or name.startswith(f"{key}.")), None)
        if place is not None:
            raise ConfigError(f"{PREFIX}.{name}: remove it; the place for it is {place}")
    if options.objective != LearnerConfig().objective:
        raise ConfigError(
            f"learner.objective: {options.objective!r} is contrastive training's; supervised, set {PREFIX}.method"
        )
    values = {
        "seed": config.seed,
        "device": config.device,
        "data": to_dict(config.data),
        "batch_size": options.batch_size,
        "epochs": epochs_of(options, images),
        "norm": options.norm,
        "optimizer.learning_rate": options.learning_rate,
        "optimizer.momentum": options.momentum,
        "optimizer.weight_decay": options.weight_decay,
        **{f"run.{name}": getattr(options, name) for name in get_type_hints(SpeedOptions)},
    }
    try:
        settled = load_config(RPATConfig, given, values, package=PRESET_PACKAGE).resolved()
    except ConfigError as error:
        raise ConfigError(f"{PREFIX}.{error}") from error
    _require_own_attack(settled, settled.make_method())
    if not settled.drop_last:
        raise ConfigError(
            f"{PREFIX}.drop_last: remove it; an environment shows the same number of images in every step"
        )
    return settled


def epochs_of(options: LearnerConfig, images: int) -> int:
    """Return the epochs of a run, the last one begun counting whole."""
    if options.total_steps is None:
        return options.epochs
    return math.ceil(options.total_steps / max(1, images // options.batch_size))


def _require_own_attack(config: RPATConfig, method: Method) -> None:
    """Raise ConfigError for a method that would change the attack's strength, which the policy chooses."""
    none, last = Attack(0.0, 0.0, 0, config.norm), (config.epochs or 1) - 1
    progress = Progress(last, last + 1, tuple(config.optimizer.milestones or ()))
    if method.budget(none, progress) != none:
        raise ConfigError(
            f"{PREFIX}.method_args: {config.method} is told to strengthen its attack during the run, but the policy "
            "chooses the attack; remove that"
        )


def _names(values: Mapping[str, Any], section: str = "") -> Iterator[str]:
    """Yield the dotted name of every value of a nested mapping, and of every empty section."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _names(value, f"{section}{key}.")
        else:
            yield f"{section}{key}"
