"""What a configuration's values are checked by: errors name the field, the value and what is allowed."""

from typing import Any, Literal, get_args

from astra_env.errors import ConfigError

CompileMode = Literal["none", "default", "reduce-overhead", "max-autotune"]
COMPILE_MODES: tuple[str, ...] = get_args(CompileMode)


def require_compilable(section: str, options: Any) -> None:
    """Raise ConfigError unless ``compile`` is a mode of ``torch.compile`` and there is a copy to compile."""
    one_of(f"{section}.compile", options.compile, COMPILE_MODES)
    if options.compile != "none" and not (options.fold_batchnorm or options.fast):
        raise ConfigError(
            f"{section}.compile: {options.compile!r} compiles the attack's copy of the network; set "
            f"--{section}.fold_batchnorm true or --{section}.fast true"
        )


def require_attackable_in_training_mode(learner: Any) -> None:
    """Raise ConfigError for settings under which an attack cannot see the whole batch in training mode."""
    if learner.fold_batchnorm:
        raise ConfigError("learner.fold_batchnorm: folded norms are those of eval mode; not with attack_mode train")
    if learner.accumulate > 1:
        raise ConfigError(
            f"learner.accumulate: chunks change what BatchNorms normalise by under attack_mode train; expected 1, got "
            f"{learner.accumulate}"
        )


def at_least(name: str, value: int, least: int) -> None:
    """Raise ConfigError unless ``value`` is an integer of at least ``least``."""
    if value < least:
        raise ConfigError(f"{name}: expected an integer >= {least}, got {value}")


def positive(name: str, value: float, allow_zero: bool = False) -> None:
    """Raise ConfigError unless ``value`` is a finite positive number."""
    if not (value >= 0 if allow_zero else value > 0) or value == float("inf"):
        raise ConfigError(f"{name}: expected a finite number {'>=' if allow_zero else '>'} 0, got {value}")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError unless ``value`` is one of the allowed words."""
    if value not in allowed:
        raise ConfigError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
