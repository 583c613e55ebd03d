"""Read checkpoints that other code wrote: official ASTrA, ACL, DynACL, RPAT and ReBAT networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from astra_env.errors import CheckpointError, KeysDiffer
from astra_env.models.layers import Network

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "P_state", "target")
"""Keys under which training scripts put the weights, beside epochs and optimisers."""

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put in front of every name."""

ALIASES = (
    ("fc.", "linear."),
    ("downsample.0.", "shortcut.0."),
    ("downsample.1.", "shortcut.1."),
    ("bn_list.", "bn_list.0."),
)
"""Other spellings of our names, used only where the checkpoint's own name is not ours and the other one is."""

SHOWN = 3


def load_official(
    model: Network, state_dict: Mapping[str, Any], strict: bool = True, allow_missing: Sequence[str] = ()
) -> Network:
    """Load a checkpoint into ``model`` and return it; on any error the model keeps the weights it had.

    Wrappers (``{"state_dict": ...}`` and the like) and the prefix ``module.`` are taken off; of DynACL's two encoders
    the momentum encoder ``encoder_k`` is read, which its authors evaluate. ``normalize.*`` and
    ``num_batches_tracked`` may be absent.

    Args:
        model: the network, built with the sizes of the checkpoint.
        state_dict: what ``torch.load(..., weights_only=True)`` returned.
        strict: with False, keys missing on either side are left out; shapes must agree all the same.
        allow_missing: prefixes of parts, such as ``("fc.",)`` for a projection head, that are loaded when the
            checkpoint has them whole and otherwise stay as they are.

    Raises:
        KeysDiffer: its text counts the missing, unexpected and differently shaped keys, and whole numbers in the place
            of fractions and the like, and names the first of each; its attributes hold all of them.
        CheckpointError: for what is no state dict, and for tensors that are not finite.
    """
    expected = model.state_dict()
    given = _rename(_unwrap(state_dict), expected)
    for prefix in allow_missing:
        part, part_given = _part(expected, prefix), _part(given, prefix)
        if _compare(part, part_given).any():
            expected = {name: tensor for name, tensor in expected.items() if name not in part}
            given = {name: tensor for name, tensor in given.items() if name not in part_given}
    difference = _compare(expected, given, strict=strict)
    shared = {name: tensor for name, tensor in given.items() if name in expected}
    if difference.any() or not shared:
        raise KeysDiffer(
            f"state_dict: does not fit {type(model).__name__}: {difference}; build the network with the checkpoint's "
            'sizes and norms, or name parts that may stay as they are, such as allow_missing=("fc.",)',
            missing=difference.missing,
            unexpected=difference.unexpected,
            wrong_shape=difference.wrong_shape,
        )
    _require_finite(shared)
    model.load_state_dict(shared, strict=False)
    return model


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a checkpoint's weights by name, wrappers and common prefixes taken off; raises CheckpointError."""
    return _unwrap(checkpoint)


@dataclass(frozen=True)
class _Difference:
    """How a checkpoint differs from a network."""

    missing: list[str]
    unexpected: list[str]
    wrong_shape: list[str]
    wrong_kind: list[str]

    def any(self) -> bool:
        return bool(self.missing or self.unexpected or self.wrong_shape or self.wrong_kind)

    def __str__(self) -> str:
        kinds = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.wrong_shape),
            ("of another kind", self.wrong_kind),
        )
        return "; ".join(f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds if names) or "no common name"


def _compare(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], strict: bool = True) -> _Difference:
    return _Difference(
        missing=[name for name in expected if name not in given and not _optional(name)] if strict else [],
        unexpected=[name for name in given if name not in expected] if strict else [],
        wrong_shape=[
            f"{name}: expected {tuple(expected[name].shape)}, got {tuple(tensor.shape)}"
            for name, tensor in given.items()
            if name in expected and tensor.shape != expected[name].shape
        ],
        wrong_kind=[
            f"{name}: expected {expected[name].dtype}, got {tensor.dtype}"
            for name, tensor in given.items()
            if name in expected
            and not name.endswith("num_batches_tracked")  # averaged copies have fractions
            and tensor.is_floating_point() != expected[name].is_floating_point()
        ],
    )


def _optional(name: str) -> bool:
    """Constants a checkpoint need not carry: the model knows its own."""
    return name.startswith("normalize.") or name.endswith("num_batches_tracked")


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
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
    return _strip_prefixes(dict(checkpoint))


def _describe(value: object) -> str:
    return "an empty mapping" if value == {} else type(value).__name__


def _strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            return _strip_prefixes({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    momentum = {name: tensor for name, tensor in tensors.items() if name.startswith("encoder_k.")}
    if momentum:
        return _strip_prefixes({name.removeprefix("encoder_k."): tensor for name, tensor in momentum.items()})
    return tensors


def _rename(given: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_our_name(name, expected): tensor for name, tensor in given.items()}


def _our_name(name: str, expected: Mapping[str, Tensor]) -> str:
    if name in expected:
        return name
    for theirs, ours in ALIASES:
        head, found, tail = name.partition(theirs)
        if found and (not head or head.endswith(".")) and head + ours + tail in expected:
            return head + ours + tail
    return name


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise CheckpointError(
            f"state_dict: expected finite weights, got NaN or infinity in {len(bad)} tensors ({_first(bad)}); "
            "use an earlier checkpoint of that run"
        )
