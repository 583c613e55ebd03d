"""The arrays that the vector environment takes and gives: NumPy's, or tensors on the learner's device."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from astra_env.errors import InputError


class Arrays(Protocol):
    """How tensors of the learner leave the environment, and how actions enter it."""

    def actions(self, actions: Any, count: int) -> Tensor:
        """Return integer actions (count, 3) as a tensor; raises InputError for another shape."""

    def give(self, values: Tensor) -> Any:
        """Return a tensor in the form that the client gets."""

    def full(self, count: int, value: Any) -> Any:
        """Return ``count`` times one bool or float64."""

    def shared(self, values: Mapping[str, Any], count: int) -> dict[str, Any]:
        """Return information that all views share: an array (count,) of each value, and its mask ``_name``."""

    def final(self, observation: Any) -> Any:
        """Return the last observations of an episode as ``final_obs``."""


class NumPyArrays:
    """NumPy arrays on the host, as Gymnasium's own vector environments have them."""

    def actions(self, actions: Any, count: int) -> Tensor:
        """Return integer actions (count, 3) as a tensor; raises InputError for another shape."""
        given = actions.detach().cpu().numpy() if isinstance(actions, Tensor) else np.asarray(actions)
        _require_shape(given.shape, count)
        try:
            return torch.from_numpy(np.array(given))
        except TypeError as error:
            raise InputError(f"actions: expected integers of shape ({count}, 3), got {given.dtype}") from error

    def give(self, values: Tensor) -> np.ndarray:
        """Return a tensor's values on the host."""
        return values.detach().cpu().numpy()

    def full(self, count: int, value: Any) -> np.ndarray:
        """Return ``count`` times one bool or float64."""
        return np.full(count, value)

    def shared(self, values: Mapping[str, Any], count: int) -> dict[str, Any]:
        """Return an array (count,) of each value, and its mask."""
        info: dict[str, Any] = {}
        for name, value in values.items():
            info[name], info[f"_{name}"] = np.full(count, value), np.ones(count, dtype=np.bool_)
        return info

    def final(self, observation: np.ndarray) -> np.ndarray:
        """Return an object array of single observations, as Gymnasium does."""
        final = np.empty(len(observation), dtype=object)
        final[:] = list(observation)
        return final


class TorchArrays:
    """Tensors on one device; nothing crosses to the host for them.

    Args:
        device: the learner's.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def actions(self, actions: Any, count: int) -> Tensor:
        """Return integer actions (count, 3), a tensor on any device or an array; raises InputError for another shape.

        A copy, so that a tensor of the caller's inference mode never enters the training.
        """
        try:
            given = actions if isinstance(actions, Tensor) else torch.from_numpy(np.array(actions))
        except TypeError as error:
            raise InputError(f"actions: expected integers of shape ({count}, 3), got {actions!r:.60}") from error
        _require_shape(tuple(given.shape), count)
        return given.detach().clone()

    def give(self, values: Tensor) -> Tensor:
        """Return the tensor as it is."""
        return values.detach()

    def full(self, count: int, value: Any) -> Tensor:
        """Return ``count`` times one bool or float64."""
        dtype = torch.bool if isinstance(value, bool | np.bool_) else torch.float64
        return torch.full((count,), value, dtype=dtype, device=self.device)

    def shared(self, values: Mapping[str, Any], count: int) -> dict[str, Any]:
        """Return a tensor (count,) of each value, and its mask; they go to the device in one transfer per dtype."""
        everyone = torch.ones(count, dtype=torch.bool, device=self.device)
        info: dict[str, Any] = {}
        for kind in {np.asarray(value).dtype for value in values.values()}:
            names = [name for name, value in values.items() if np.asarray(value).dtype == kind]
            rows = torch.from_numpy(np.array([values[name] for name in names])).to(self.device, non_blocking=True)
            info |= dict(zip(names, rows[:, None].repeat(1, count), strict=True))
        return {key: entry for name in values for key, entry in ((name, info[name]), (f"_{name}", everyone.clone()))}

    def final(self, observation: Tensor) -> Tensor:
        """Return the observations as they are, one tensor for all."""
        return observation


def _require_shape(shape: tuple[int, ...], count: int) -> None:
    if tuple(shape) != (count, 3):
        raise InputError(f"actions: expected integers of shape ({count}, 3), got shape {tuple(shape)}")
