"""Read checkpoints that other code wrote: official ASTrA, ACL, DynACL, RPAT and ReBAT networks."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from astra_env.errors import CheckpointError, KeysDiffer
from astra_env.models.layers import Network
from astra_env.models.unwrap import ASIDE, find_weights, first_of

ALIASES = (
    ("fc.", "linear."),
    ("downsample.0.", "shortcut.0."),
    ("downsample.1.", "shortcut.1."),
    ("bn_list.", "bn_list.0."),
)
"""Other spellings of our names, used only where the checkpoint's own name is not ours and the other one is."""

SIGNATURES = (
    ("conv1.weight", "layer1.0.conv1.weight"),
    ("block1.layer.0.conv1.weight",),
    ("patch.weight", "last_norm.weight"),
)
"""Names by which the networks that can be rebuilt from their weights are known: ResNets, WideResNets, transformers."""


def load_official(
    model: Network, state_dict: Mapping[str, Any], strict: bool = True, allow_missing: Sequence[str] = ()
) -> Network:
    """Load a checkpoint into ``model`` and return it; on any error the model keeps the weights it had.

    Wrappers (``{"state_dict": ...}`` and the like) and prefixes such as ``module.`` are taken off; of DynACL's two
    encoders the momentum encoder ``encoder_k`` is read, which its authors evaluate. ``normalize.*`` and
    ``num_batches_tracked`` may be absent. Parts beside the network are left aside with a warning.

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
    needed = [name for name in expected if not _optional(name) and not name.startswith(tuple(allow_missing))]
    weights = find_weights(state_dict, lambda found: set(needed) <= set(_rename(found, expected)))
    given = _rename(weights, expected)
    for prefix in allow_missing:
        part, part_given = _part(expected, prefix), _part(given, prefix)
        if _compare(part, part_given).any():
            expected = {name: tensor for name, tensor in expected.items() if name not in part}
            given = {name: tensor for name, tensor in given.items() if name not in part_given}
    difference = _compare(expected, given, strict=strict)
    aside = [name for name in difference.unexpected if ASIDE.fullmatch(name.partition(".")[0])]
    if aside and len(aside) == difference.count():
        parts = list(dict.fromkeys(name.partition(".")[0] for name in aside))
        warnings.warn(f"state_dict: left aside, {type(model).__name__} has no {first_of(parts)}", stacklevel=2)
        given = {name: tensor for name, tensor in given.items() if name not in aside}
        difference = _compare(expected, given, strict=strict)
    shared = {name: tensor for name, tensor in given.items() if name in expected}
    if difference.any() or not shared:
        raise KeysDiffer(
            f"state_dict: does not fit {type(model).__name__}: {difference}; build the network with the checkpoint's "
            "sizes and norms",
            missing=difference.missing,
            unexpected=difference.unexpected,
            wrong_shape=difference.wrong_shape,
        )
    _require_finite(shared)
    model.load_state_dict(shared, strict=False)
    return model


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a checkpoint's weights by name, wrappers and prefixes taken off; raises CheckpointError."""
    return find_weights(checkpoint, _is_known)


def _is_known(names: Mapping[str, Tensor]) -> bool:
    return any(all(name in names for name in signature) for signature in SIGNATURES)


@dataclass(frozen=True)
class _Difference:
    """How a checkpoint differs from a network."""

    missing: list[str]
    unexpected: list[str]
    wrong_shape: list[str]
    wrong_kind: list[str]

    def any(self) -> bool:
        return self.count() > 0

    def count(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.wrong_shape) + len(self.wrong_kind)

    def __str__(self) -> str:
        kinds = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.wrong_shape),
            ("of another kind", self.wrong_kind),
        )
        return (
            "; ".join(f"{len(names)} {kind} ({first_of(names)})" for kind, names in kinds if names) or "no common name"
        )


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
            f"state_dict: expected finite weights, got NaN or infinity in {len(bad)} tensors ({first_of(bad)}); "
            "use an earlier checkpoint of that run"
        )
