"""Find one network's weights in what other programs saved: under wrappers, behind prefixes, beside other things."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from astra_env.errors import CheckpointError

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "P_state", "target")
"""Keys under which training scripts put the weights, beside epochs and optimisers; the first one counts."""
PREFIXES = (
    "module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "student.", "model_ema.",
    "ema_model.", "0.", "1.",
)  # fmt: skip
"""What wrapping modules put in front of every name: DataParallel, torch.compile, training scripts, Sequential."""
ASIDE = re.compile(
    r"sub_block\d+|proj(ector|ection)?(_head)?|predict(or|ion)(_head)?|queue(_ptr)?|criterion|n_averaged"
)
"""Parts of a checkpoint that compute nothing of a network without them: a block that TRADES' WideResNets and their
heirs build and never call, heads of self-supervised methods, queues, counters of averages."""
NOT_WEIGHTS = ("optim", "sched", "scaler", "lr_", "amp", "config", "args", "hparams")
"""Beginnings of keys under which no network lies."""
NORMALISATIONS = {"mean": "normalize.mean", "mu": "normalize.mean", "std": "normalize.std", "sigma": "normalize.std"}
"""Names of channel statistics, which may lie in a layer of their own before the network."""
SHOWN = 3
DEPTH = 4
"""How many mappings deep weights are looked for."""

Tensors = dict[str, Tensor]
Fits = Callable[[Tensors], bool]
"""Whether tensors by name are all that a network needs."""


def find_weights(checkpoint: Mapping[str, Any], fits: Fits) -> Tensors:
    """Return one network's weights by name, wrappers and prefixes taken off.

    Where known wrappers and prefixes do not lead to weights that fit, all mappings and all groups of names with one
    beginning are tried, and the only one that fits is taken, with a warning of one line that says what was left aside.
    If none fits, the result is what the wrappers and prefixes lead to.

    Raises:
        CheckpointError: for what is no state dict, or when several networks fit.
    """
    try:
        found = _usual(checkpoint, fits)
        if fits(found):
            return found
    except CheckpointError:
        pass
    candidates = _different([(name, own) for name, own in _candidates(checkpoint) if fits(own)])
    if len(candidates) > 1:
        names = ", ".join(name or "the file itself" for name, _ in candidates)
        raise CheckpointError(
            f"state_dict: holds the weights of several networks ({names}); choose one with --network.weights NAME, or "
            "save it alone"
        )
    if not candidates:
        return _usual(checkpoint, fits)
    name, own = candidates[0]
    _say_left_aside(checkpoint, name)
    return own


def chosen_weights(checkpoint: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """Return what lies under a key or behind a prefix, such as "ema" or "student.backbone"; None when nothing does."""
    for mapping in (checkpoint, *(inner for inner in checkpoint.values() if isinstance(inner, Mapping))):
        if isinstance(mapping.get(name), Mapping):
            return mapping[name]  # type: ignore[no-any-return]
        behind = {key[len(name) + 1 :]: value for key, value in mapping.items() if str(key).startswith(f"{name}.")}
        if behind:
            return behind
    return None


def _usual(checkpoint: Any, fits: Fits) -> Tensors:
    while isinstance(checkpoint, Mapping):
        inner = next((checkpoint[key] for key in WRAPPERS if isinstance(checkpoint.get(key), Mapping)), None)
        if inner is None:
            break
        checkpoint = inner
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise CheckpointError(
            f"state_dict: expected names and tensors, got {_describe(checkpoint)}; pass what torch.load returned"
        )
    for name, value in checkpoint.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"state_dict: expected a tensor under {name!r}, got {_describe(value)}; "
                f"pass the weights themselves or wrap them as one of {', '.join(WRAPPERS)}"
            )
    return _stripped(_with_statistics(dict(checkpoint)), fits)


def _stripped(tensors: Tensors, fits: Fits) -> Tensors:
    """Take off what all names begin with; of DynACL's two encoders the momentum encoder ``encoder_k`` is read."""
    if fits(tensors):
        return tensors
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return _stripped(_behind(tensors, prefix), fits)
    momentum = _behind(tensors, "encoder_k.")
    return _stripped(momentum, fits) if momentum else tensors


def _candidates(checkpoint: Any) -> Iterator[tuple[str, Tensors]]:
    """Yield every mapping's tensors and every group of them with one beginning, with the place where they lie."""
    waiting, seen = [(checkpoint, "", 0)], set()
    while waiting:
        value, place, depth = waiting.pop(0)
        if not isinstance(value, Mapping) or id(value) in seen or depth > DEPTH:
            continue
        seen.add(id(value))
        tensors = {name: entry for name, entry in value.items() if isinstance(name, str) and isinstance(entry, Tensor)}
        yield from _groups(_with_statistics(tensors), place)
        for name, inner in value.items():
            if not str(name).lower().startswith(NOT_WEIGHTS):
                waiting.append((inner, f"{place}{name}.", depth + 1))


def _groups(tensors: Tensors, place: str, depth: int = 0) -> Iterator[tuple[str, Tensors]]:
    if tensors:
        yield place.rstrip("."), tensors
    if depth == DEPTH:
        return
    statistics = {name: tensor for name, tensor in tensors.items() if name.startswith("normalize.")}
    for prefix in sorted({name.partition(".")[0] for name in tensors if "." in name}):
        inner = _with_statistics(_behind(tensors, f"{prefix}."))
        if prefix != "normalize" and len(inner) > 1:
            yield from _groups({**statistics, **inner}, f"{place}{prefix}.", depth + 1)


def _behind(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _with_statistics(tensors: Tensors) -> Tensors:
    """Give channel statistics their names here, whether they lie beside the network or in a layer before it."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        ours = NORMALISATIONS.get(last)
        alone = ours is not None and "." not in layer and _is_alone(tensors, layer) and tensor.numel() == 3
        renamed[ours if alone and ours is not None else name] = tensor.reshape(-1) if alone else tensor
    return renamed


def _is_alone(tensors: Tensors, layer: str) -> bool:
    """Whether a layer holds channel statistics and nothing else; those beside the network have no layer."""
    return not layer or all(
        name.rpartition(".")[2] in NORMALISATIONS for name in tensors if name.startswith(f"{layer}.")
    )


def _different(found: list[tuple[str, Tensors]]) -> list[tuple[str, Tensors]]:
    """Leave out weights that are the same as earlier ones, and groups within a group that fits already."""
    kept: list[tuple[str, Tensors]] = []
    for name, tensors in found:
        within = any(not own or name.startswith(f"{own}.") for own, _ in kept)
        if not within and not any(_same(tensors, own) for _, own in kept):
            kept.append((name, tensors))
    return kept


def _same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def _say_left_aside(checkpoint: Mapping[str, Any], place: str) -> None:
    first = place.partition(".")[0]
    others = [str(name) for name in checkpoint if str(name).partition(".")[0] != first] if place else [
        str(name) for name, value in checkpoint.items() if not isinstance(value, Tensor)
    ]  # fmt: skip
    others = list(dict.fromkeys(name.partition(".")[0] for name in others))
    left = f"; left aside: {first_of(others)}" if others else ""
    warnings.warn(f"state_dict: the weights are those under {place or 'the names themselves'!r}{left}", stacklevel=3)


def first_of(names: list[str]) -> str:
    """Return the first few names as text."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _describe(value: object) -> str:
    return "an empty mapping" if value == {} else type(value).__name__
