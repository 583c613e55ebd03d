"""The state of a Stable-Baselines3 agent as tensors and plain values, and back into an agent built from configuration.

Stable-Baselines3's own files pickle spaces, schedules and buffers, which can run code when loaded. Everything of that
kind is rebuilt from the configuration here; what a run has learned and seen needs no pickle.
"""

import io
import json
import zipfile
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from astra_env.errors import CheckpointError

LIVE = ("_last_obs", "_last_original_obs", "_last_episode_starts", "_last_lstm_states")
"""Arrays that an agent carries from one rollout to the next."""
DEQUES = ("ep_info_buffer", "ep_success_buffer")
"""Plain values about the last episodes."""


def agent_state(model: BaseAlgorithm) -> dict[str, Any]:
    """Return everything the agent's further learning depends on."""
    file = io.BytesIO()
    model.save(file)
    state: dict[str, Any] = {
        "model": torch.frombuffer(bytearray(_without_pickles(file)), dtype=torch.uint8),
        "live": {name: _pack(getattr(model, name)) for name in LIVE if getattr(model, name, None) is not None},
        "episodes": {name: [_plain(entry) for entry in getattr(model, name) or ()] for name in DEQUES},
    }
    replay = getattr(model, "replay_buffer", None)
    if replay is not None:
        arrays = {name: value for name, value in vars(replay).items() if isinstance(value, np.ndarray)}
        state["replay"] = {"pos": replay.pos, "full": bool(replay.full), **{k: _pack(v) for k, v in arrays.items()}}
    return state


def load_agent_state(model: BaseAlgorithm, state: Mapping[str, Any]) -> None:
    """Continue ``model``, freshly built from the run's configuration, where ``state`` was taken.

    Raises CheckpointError when the state is not one of such an agent.
    """
    file = io.BytesIO(state["model"].cpu().numpy().tobytes())
    try:
        with zipfile.ZipFile(file) as archive:
            values = json.loads(archive.read("data"))
    except (zipfile.BadZipFile, ValueError) as error:
        raise CheckpointError(f"checkpoint: model: not an agent's state ({error}); use another checkpoint") from error
    for name, value in values.items():
        if isinstance(value, dict) and ":serialized:" in value:
            raise CheckpointError(f"checkpoint: model: {name} is pickled and could run code when loaded; refused")
        if hasattr(model, name):
            setattr(model, name, value)
    file.seek(0)
    model.set_parameters(file, device=model.device)  # type: ignore[arg-type]
    for name, value in state["live"].items():
        setattr(model, _known(name, LIVE), _unpack(value))
    for name, entries in state["episodes"].items():
        setattr(model, _known(name, DEQUES), deque(entries, maxlen=model._stats_window_size))
    if "replay" in state:
        replay = model.replay_buffer  # type: ignore[attr-defined]
        for name, value in state["replay"].items():
            setattr(replay, _known(name, tuple(vars(replay))), _unpack(value))


def _without_pickles(file: io.BytesIO) -> bytes:
    """Return Stable-Baselines3's archive without what it pickled; parameters and optimisers are tensors."""
    kept = io.BytesIO()
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(kept, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name == "data":
                values = json.loads(data).items()
                data = json.dumps({k: v for k, v in values if not _is_pickled(v)}).encode()
            target.writestr(zipfile.ZipInfo(name), data)
    return kept.getvalue()


def _is_pickled(value: Any) -> bool:
    return isinstance(value, dict) and ":serialized:" in value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _known(name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise CheckpointError(f"checkpoint: {name!r} is no part of an agent's state")
    return name


def _pack(value: Any) -> Any:
    """Turn arrays into tensors, tuples (recurrent states among them) into lists."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, tuple):
        return {type(value).__name__: [_pack(entry) for entry in value]}
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _unpack(value: Any) -> Any:
    if isinstance(value, dict):
        ((kind, entries),) = value.items()
        if kind == "RNNStates":
            from sb3_contrib.common.recurrent.type_aliases import RNNStates

            return RNNStates(*(tuple(entry["tuple"]) for entry in entries))
        return tuple(_unpack(entry) for entry in entries)
    return value.numpy().copy() if isinstance(value, Tensor) else value
