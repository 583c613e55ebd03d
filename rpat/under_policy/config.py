"""From an experiment's configuration to that of the supervised training inside it."""

import math
from dataclasses import fields

from astra_env.config.dotted import flat
from astra_env.config.options import SpeedOptions
from astra_env.config.reading import load_config, to_dict
from astra_env.config.schema import ExperimentConfig, LearnerConfig
from astra_env.errors import ConfigError
from astra_env.strategy import Attack
from rpat.config import PRESET_PACKAGE, RPATConfig
from rpat.methods import Method, Progress

PREFIX = "learner.kind_args"
SHARED = ("seed", "device", "data", "run", "learner")
"""What both configurations call by one name."""
LEARNER = ("batch_size", "epochs", "norm", "optimizer.learning_rate", "optimizer.momentum", "optimizer.weight_decay")
"""What an experiment says in its section ``learner``, by the last part of the name."""
ELSEWHERE = {
    "epsilon": "strategy.epsilon, from which the policy chooses",
    "steps": "strategy.steps, from which the policy chooses",
    "step_size": "strategy.step_size, from which the policy chooses",
    "test": "probe",
    "validation": "nothing: no model is selected during the run",
}
"""What an experiment says otherwise, or not at all."""


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
    for name in flat(given):
        if place := _place(name):
            raise ConfigError(f"{PREFIX}.{name}: remove it; the place for it is {place}")
    if options.objective != LearnerConfig().objective:
        raise ConfigError(
            f"learner.objective: {options.objective!r} is contrastive training's; supervised, set {PREFIX}.method"
        )
    values = {
        "seed": config.seed,
        "device": config.device,
        "data": to_dict(config.data),
        "learner": {option.name: getattr(options, option.name) for option in fields(SpeedOptions)},
        **{name: getattr(options, name.rpartition(".")[2]) for name in LEARNER},
        "epochs": epochs_of(options, images),
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


def _place(name: str) -> str | None:
    """Return where an experiment says what is called ``name`` in a supervised run; None for what has no other place."""
    name = RPATConfig.renamed.get(name, name)
    section = name.partition(".")[0]
    if name in LEARNER:
        return f"learner.{name.rpartition('.')[2]}"
    return name if section in SHARED else ELSEWHERE.get(section)


def _require_own_attack(config: RPATConfig, method: Method) -> None:
    """Raise ConfigError for a method that would change the attack's strength, which the policy chooses."""
    none, last = Attack(0.0, 0.0, 0, config.norm), (config.epochs or 1) - 1
    progress = Progress(last, last + 1, tuple(config.optimizer.milestones or ()))
    if method.budget(none, progress) != none:
        raise ConfigError(
            f"{PREFIX}.method_args: {config.method} is told to strengthen its attack during the run, but the policy "
            "chooses the attack; remove that"
        )
