"""Whether the parts of a checkpoint fit what they are loaded into, asked before anything is changed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from astra_env.errors import CheckpointError

UNFIT = (KeyError, IndexError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError)
"""What Python and PyTorch raise when a state of another form is loaded."""


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


def require_tensors(name: str, given: Any, like: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless ``given`` maps the names of ``like`` to such tensors."""
    entries = require_mapping(name, given)
    if entries.keys() != like.keys():
        odd = sorted(str(key) for key in entries.keys() ^ like.keys())
        raise CheckpointError(f"checkpoint: {name}: missing or unexpected: {', '.join(odd[:3])}")
    for key, tensor in like.items():
        require_tensor(f"{name}.{key}", entries[key], tensor)


def require_mapping(name: str, given: Any) -> Mapping[Any, Any]:
    """Return ``given``; raises CheckpointError unless it is a mapping."""
    if not isinstance(given, Mapping):
        raise CheckpointError(f"checkpoint: {name}: expected a mapping, got {type(given).__name__}")
    return given


def require_count(name: str, given: Any) -> int:
    """Return ``given``; raises CheckpointError unless it is an integer >= 0."""
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        raise CheckpointError(f"checkpoint: {name}: expected an integer >= 0, got {_short(given)}")
    return given


def require_scale(name: str, given: Any) -> float:
    """Return ``given`` as a float; raises CheckpointError unless it is a finite number > 0."""
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given) or given <= 0:
        raise CheckpointError(f"checkpoint: {name}: expected a finite number > 0, got {_short(given)}")
    return float(given)


def require_number(name: str, value: Any) -> Any:
    """Return ``value``; raises CheckpointError unless it is a finite number, or a tensor of one."""
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise CheckpointError(f"checkpoint: {name}: expected a finite number, got {_short(value)}")
    return value


def require_generator_state(name: str, given: Any, generator: torch.Generator) -> Tensor:
    """Return ``given`` on the CPU; raises CheckpointError unless a generator such as ``generator`` accepts it."""
    require_tensor(name, given, generator.get_state())
    try:
        torch.Generator(generator.device).set_state(given.cpu())
    except UNFIT as error:
        raise CheckpointError(f"checkpoint: {name}: not the state of a generator ({one_line(error)})") from error
    return given.cpu()


def require_optimizer_state(name: str, given: Any, optimizer: Optimizer) -> None:
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
        for key, value in require_mapping(f"{name}.state", buffers).items():
            if isinstance(value, Tensor) and value.dim() > 0:
                require_tensor(f"{name}.state.{key}", value, parameters[index])
            elif value is not None:
                require_number(f"{name}.state.{key}", value)


def one_line(error: BaseException) -> str:
    """Return an error's message, shortened, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _require_group(name: str, given: Mapping[str, Any], like: Mapping[str, Any]) -> None:
    if given.keys() != like.keys() or given["params"] != like["params"]:
        raise CheckpointError(f"checkpoint: {name}: another optimiser's state")
    for key, value in like.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = require_number(f"{name}.{key}", given[key])
            if key != "lr" and number != value:
                raise CheckpointError(f"checkpoint: {name}.{key}: expected {value}, got {_short(number)}")
        elif key != "params" and type(given[key]) is not type(value):
            raise CheckpointError(f"checkpoint: {name}.{key}: expected {_short(value)}, got {_short(given[key])}")


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _short(value: Any) -> str:
    return repr(value)[:60].replace("\n", " ")
