"""Whether a state fits what it is loaded into, asked before anything is changed.

A state fits when it has the structure, the shapes and the dtypes of its owner's own ``state_dict()``; finite numbers,
and counts that are not negative. :func:`require_state` asks for that, and an owner needs nothing but ``state_dict()``
and ``load_state_dict()``. Where states of one owner differ, it also has ``state_form()``, which returns its
``state_dict()`` with these in the places that vary:

- an optimizer, for a state of it: buffers of the shapes of its parameters, or none before the first step;
- a ``torch.Generator``, for a state that such a generator takes;
- any other owner of a state, for a state that fits it;
- ``Either(form, instead)``, for what fits ``form``, or the value ``instead`` itself, such as None;
- a type, for any value of that type.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from astra_env.errors import CheckpointError

UNFIT = (KeyError, IndexError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError)
"""What Python and PyTorch raise when a state of another form is loaded."""


@dataclass(frozen=True)
class Either:
    """What fits ``form``, or the value ``instead``."""

    form: Any
    instead: Any = None


def require_state(given: Any, form: Any, path: str = "", *, others: bool = False) -> None:
    """Raise CheckpointError unless ``given`` fits ``form``.

    Args:
        given: a state, or a part of one.
        form: the owner's ``state_dict()``, or the owner itself, or any form of this module's docstring.
        path: where the part is, for messages: ``objective.momentum_encoder``.
        others: whether ``given``, a mapping, may hold more than ``form`` names.
    """
    if isinstance(form, Either):
        if type(given) is not type(form.instead) or given != form.instead:
            require_state(given, form.form, path)
    elif isinstance(form, Tensor):
        require_tensor(path, given, form)
    elif isinstance(form, Mapping):
        _require_entries(given, form, path, others)
    elif isinstance(form, list | tuple):
        if not isinstance(given, type(form)) or len(given) != len(form):
            raise CheckpointError(f"checkpoint: {path}: expected {len(form)} entries, got {_short(given)}")
        for index, (entry, expected) in enumerate(zip(given, form, strict=True)):
            require_state(entry, expected, f"{path}.{index}")
    elif isinstance(form, Optimizer):
        _require_optimizer_state(path, given, form)
    elif isinstance(form, torch.Generator):
        _require_generator_state(path, given, form)
    elif not isinstance(form, type) and hasattr(form, "state_dict"):
        require_state(given, form.state_form() if hasattr(form, "state_form") else form.state_dict(), path)
    elif isinstance(form, float):
        require_number(path, given)
    elif isinstance(form, int) and not isinstance(form, bool):
        require_count(path, given)
    else:
        expected = form if isinstance(form, type) else type(form)
        if not isinstance(given, expected):
            raise CheckpointError(f"checkpoint: {path}: expected {_name(expected)}, got {_name(type(given))}")


def load_or_undo(state: Any, before: Any, take: Callable[[Any], None], owner: str) -> None:
    """Give ``take`` a copy of ``state``; when that fails, give it a copy of ``before`` and raise CheckpointError.

    Copies, because optimizers keep the tensors that they load and go on to change them.

    Args:
        state: what to load, checked as far as can be.
        before: the present state.
        take: loads a state.
        owner: whose state it is, for the message: "this learner".
    """
    before = copy.deepcopy(before)
    try:
        take(copy.deepcopy(state))
    except UNFIT as error:
        take(before)
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"checkpoint: does not fit {owner} ({one_line(error)})") from error


def load_parts(owners: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Give each owner its part of ``state``, by name: generators and whatever has ``load_state_dict``."""
    for name, owner in owners.items():
        if isinstance(owner, torch.Generator):
            owner.set_state(state[name].cpu())
        elif isinstance(owner, Mapping):
            load_parts(owner, state[name])
        else:
            owner.load_state_dict(state[name])


def require_tensor(name: str, given: Any, like: Tensor) -> None:
    """Raise CheckpointError unless ``given`` is a finite tensor of the shape and dtype of ``like``."""
    if not isinstance(given, Tensor):
        raise CheckpointError(f"checkpoint: {name}: expected a tensor, got {type(given).__name__}")
    if given.shape != like.shape or given.dtype != like.dtype:
        raise CheckpointError(
            f"checkpoint: {name}: expected {_describe(like)}, got {_describe(given)}; another configuration's state"
        )
    if given.is_floating_point() and not bool(torch.isfinite(given).all()):
        raise CheckpointError(f"checkpoint: {name}: holds NaN or infinity; use an earlier checkpoint of that run")


def require_mapping(name: str, given: Any) -> Mapping[Any, Any]:
    """Return ``given``; raises CheckpointError unless it is a mapping."""
    if not isinstance(given, Mapping):
        raise CheckpointError(f"checkpoint: {name}: expected a mapping, got {type(given).__name__}")
    return given


def require_count(name: str, given: Any, most: int | None = None) -> int:
    """Return ``given``; raises CheckpointError unless it is an integer >= 0 and at most ``most``."""
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        raise CheckpointError(f"checkpoint: {name}: expected an integer >= 0, got {_short(given)}")
    if most is not None and given > most:
        raise CheckpointError(f"checkpoint: {name}: expected at most {most}, got {given}")
    return given


def require_scale(name: str, given: Any) -> float:
    """Return ``given`` as a float; raises CheckpointError unless it is a finite number > 0."""
    number = require_number(name, given)
    if isinstance(given, Tensor) or number <= 0:
        raise CheckpointError(f"checkpoint: {name}: expected a finite number > 0, got {_short(given)}")
    return float(number)


def require_number(name: str, value: Any) -> Any:
    """Return ``value``; raises CheckpointError unless it is a finite number, or a tensor of one."""
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise CheckpointError(f"checkpoint: {name}: expected a finite number, got {_short(value)}")
    return value


def one_line(error: BaseException) -> str:
    """Return an error's message, shortened, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _require_entries(given: Any, form: Mapping[str, Any], path: str, others: bool) -> None:
    entries = require_mapping(path, given)
    for key, expected in form.items():
        if key not in entries:
            raise CheckpointError(f"checkpoint: {path or 'state'}: {key!r} is missing; it does not fit this run")
        require_state(entries[key], expected, f"{path}.{key}" if path else str(key))
    odd = sorted(str(key) for key in entries.keys() - form.keys())
    if odd and not others:
        raise CheckpointError(
            f"checkpoint: {path or 'state'}: holds {', '.join(odd[:3])}, which this configuration does not have; "
            "another configuration's state"
        )


def _require_generator_state(name: str, given: Any, generator: torch.Generator) -> None:
    require_tensor(name, given, generator.get_state())
    try:
        torch.Generator(generator.device).set_state(given.cpu())
    except UNFIT as error:
        raise CheckpointError(f"checkpoint: {name}: not the state of a generator ({one_line(error)})") from error


def _require_optimizer_state(name: str, given: Any, optimizer: Optimizer) -> None:
    """Raise CheckpointError unless ``given`` is a state of ``optimizer``: its groups, and buffers like its parameters.

    Buffers are tensors of the parameter's shape (momentum, averages) or finite scalars (step counts).
    """
    state = require_mapping(name, given)
    groups, own = state.get("param_groups"), optimizer.state_dict()["param_groups"]
    if not isinstance(groups, Sequence) or len(groups) != len(own):
        raise CheckpointError(f"checkpoint: {name}.param_groups: expected {len(own)} groups; another optimiser's state")
    for group, expected in zip(groups, own, strict=True):
        _require_group(f"{name}.param_groups", require_mapping(f"{name}.param_groups", group), expected)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries = require_mapping(f"{name}.state", state.get("state"))
    kinds = {tuple(sorted(map(str, require_mapping(f"{name}.state", buffers)))) for buffers in entries.values()}
    if len(kinds) > 1:
        raise CheckpointError(f"checkpoint: {name}.state: some parameters have buffers that others lack")
    for index, buffers in entries.items():
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(parameters):
            raise CheckpointError(f"checkpoint: {name}.state: no parameter {_short(index)}")
        for key, value in buffers.items():
            if isinstance(value, Tensor) and value.dim() > 0:
                require_tensor(f"{name}.state.{key}", value, parameters[index])
            elif value is not None:
                require_number(f"{name}.state.{key}", value)


def _require_group(name: str, given: Mapping[str, Any], like: Mapping[str, Any]) -> None:
    if given.keys() != like.keys():
        raise CheckpointError(f"checkpoint: {name}: another optimiser's state")
    require_state(given["params"], like["params"], f"{name}.params")
    if given["params"] != like["params"]:
        raise CheckpointError(f"checkpoint: {name}.params: another optimiser's state")
    for key, value in like.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = require_number(f"{name}.{key}", given[key])
            if key != "lr" and number != value:
                raise CheckpointError(f"checkpoint: {name}.{key}: expected {value}, got {_short(number)}")
        elif key != "params" and type(given[key]) is not type(value):
            raise CheckpointError(f"checkpoint: {name}.{key}: expected {_short(value)}, got {_short(given[key])}")


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _name(cls: type) -> str:
    return "None" if cls is type(None) else cls.__name__


def _short(value: Any) -> str:
    return repr(value)[:60].replace("\n", " ")
