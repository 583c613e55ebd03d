"""What a supervised run's configuration may say: errors name field, value and remedy, oddities are warned of."""

import warnings
from typing import Any

from astra_env.attacks import get_norm
from astra_env.errors import ConfigError
from astra_env.models import NETWORKS, NORMALIZATIONS
from astra_env.strategy import check_pixel_units, parse_number
from rpat.methods.base import Method
from rpat.schedules import default_milestones

RPATConfig = Any
"""The settings under check; their class calls this module, which therefore does not import it."""

L2_LIMIT = 10.0
"""Largest l-2 radius taken as meant: beyond it the number is in 0-255 units."""


def check_attack(config: RPATConfig) -> None:
    """Check norm, radius and step size; warn of lengths that look like 0-255 units."""
    get_norm(config.norm)
    for name in ("epsilon", "step_size"):
        value = parse_number(name, getattr(config, name))
        if config.norm == "linf":
            check_pixel_units(name, value)
        elif not 0 <= value <= L2_LIMIT:
            raise ConfigError(
                f"{name}: expected an l2 length in [0, {L2_LIMIT:g}] in [0, 1] pixel units, got {value:g}; "
                f"in 0-255 units write '{value:g}/255'"
            )
        elif value > 1:
            warnings.warn(
                f"{name}: {value:g} is a large l2 length in [0, 1] pixel units; if it is in 0-255 units, "
                f"write '{value:g}/255'",
                stacklevel=4,
            )
    if config.budget.step_size > config.budget.epsilon:
        warnings.warn(
            f"step_size: {config.step_size} is larger than epsilon {config.epsilon}, so the attack jumps from edge "
            "to edge of the ball; lower --step_size",
            stacklevel=4,
        )


def check_numbers(config: RPATConfig) -> None:
    """Check every number that has bounds of its own."""
    _at_least("steps", config.steps, 0)
    _at_least("batch_size", config.batch_size, 2)
    _at_least("rp_weight", config.rp_weight, 0)
    _at_least("optimizer.momentum", config.optimizer.momentum, 0)
    _at_least("optimizer.weight_decay", config.optimizer.weight_decay, 0)
    _at_least("augment.padding", config.augment.padding, 0)
    _at_least("validation.size", config.validation.size, 1)
    _at_least("validation.steps", config.validation.steps, 0)
    _at_least("run.keep_every", config.run.keep_every, 0)
    for section, name in (
        ("validation", "every"),
        ("validation", "batch_size"),
        ("test", "batch_size"),
        ("run", "log_every"),
        ("run", "checkpoint_every"),
    ):
        _at_least(f"{section}.{name}", getattr(getattr(config, section), name), 1)
    if config.epochs is not None:
        _at_least("epochs", config.epochs, 1)
    if not 0 < config.optimizer.learning_rate < float("inf"):
        raise ConfigError(
            f"optimizer.learning_rate: expected a finite number > 0, got {config.optimizer.learning_rate}; raise it"
        )
    for name, rate in (("rp_rate", config.rp_rate), ("ema.decay", config.ema.decay)):
        if not 0 <= rate <= 1:
            raise ConfigError(f"{name}: expected a share in [0, 1], got {rate}; change it")


def check_choices(config: RPATConfig) -> None:
    """Check every value that is one of a few; ``config`` is resolved."""
    for name, value, allowed in (
        ("network.normalize", config.network.normalize, ("data", *NORMALIZATIONS)),
        ("optimizer.schedule", config.optimizer.schedule, ("piecewise", "cosine")),
        ("augment.padding_mode", config.augment.padding_mode, ("zero", "reflect")),
        ("augment.autoaugment", config.augment.autoaugment, ("never", "always", "second_half")),
        ("run.precision", config.run.precision, ("fp32", "bf16")),
        ("run.on_divergence", config.run.on_divergence, ("raise", "rollback")),
    ):
        if value not in allowed:
            raise ConfigError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}; choose one of them")
    NETWORKS.get(config.network.name)


def check_attacked_network(config: RPATConfig, method: Method) -> None:
    """Refuse to fold or compile a network that is attacked in training mode; ``run.fast`` does without."""
    if method.attack_mode == "train" and config.run.fold_batchnorm:
        raise ConfigError(
            f"method_args.attack_mode: {config.method} attacks the network in training mode, which cannot be folded "
            "into a copy; set run.fold_batchnorm false or attack_mode eval"
        )


def check_last_batch(config: RPATConfig, images: int, ranks: int) -> None:
    """Check that the last batch of an epoch, when it is kept, can be shared by the ranks and has a variance."""
    rest = images % config.batch_size
    if not config.drop_last and rest and (rest == 1 or rest % ranks):
        raise ConfigError(
            f"drop_last: the last batch of an epoch would have {rest} of the {images} images; it needs 2 or more and a "
            f"multiple of the {ranks} processes; set --drop_last true or change --validation.size"
        )


def check_epochs(config: RPATConfig, method: Method) -> None:
    """Check everything that starts or ends at an epoch; ``config`` is resolved."""
    epochs = config.epochs or 0
    if config.robust_perception and not 0 <= config.rp_start_epoch < epochs:
        raise ConfigError(
            f"rp_start_epoch: expected 0..{epochs - 1} in a run of {epochs} epochs, got {config.rp_start_epoch}, so "
            "robust perception would never start; lower it or set --robust_perception false"
        )
    if method.needs_average and not config.ema.enabled:
        raise ConfigError(f"ema.enabled: {config.method} learns from the averaged weights; set --ema.enabled true")
    if config.ema.enabled and not 0 <= config.ema.start_epoch < epochs:
        raise ConfigError(
            f"ema.start_epoch: expected 0..{epochs - 1} in a run of {epochs} epochs, got {config.ema.start_epoch}, so "
            f"the warm-up of {config.method} would never end; lower --ema.start_epoch or raise --epochs"
        )
    milestones = config.optimizer.milestones or []
    if any(milestone < 0 for milestone in milestones) or sorted(milestones) != list(milestones):
        raise ConfigError(f"optimizer.milestones: expected rising epochs >= 0, got {milestones}; sort them")
    falls = config.optimizer.schedule == "piecewise" and milestones == default_milestones(epochs)
    if falls and min(milestones) >= epochs:
        warnings.warn(
            f"optimizer.milestones: the learning rate falls at epochs {milestones}, after the end of this run of "
            f"{epochs} epochs; set --optimizer.milestones",
            stacklevel=5,
        )


def _at_least(name: str, value: float, least: int) -> None:
    if not value >= least or value == float("inf"):
        raise ConfigError(f"{name}: expected a finite number >= {least}, got {value}; raise it")
