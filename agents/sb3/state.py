"""The state of a Stable-Baselines3 agent as tensors and plain values, and back into an agent built from configuration.

Stable-Baselines3's own files pickle spaces, schedules and buffers, which can run code when loaded. Everything of that
kind is rebuilt from the configuration here; what a run has learned and seen needs no pickle.
"""

import io
import json
import zipfile
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from astra_env.errors import CheckpointError
from astra_env.storage.checkpoint import decode
from astra_env.storage.state import (
    UNFIT,
    one_line,
    require_count,
    require_mapping,
    require_number,
    require_state,
    require_tensor,
)

LIVE = ("_last_obs", "_last_original_obs", "_last_episode_starts", "_last_lstm_states")
"""Arrays that an agent carries from one rollout to the next."""
DEQUES = ("ep_info_buffer", "ep_success_buffer")
"""Plain values about the last episodes."""
COUNTERS = ("num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_episode_num", "_n_updates", "_n_calls")
MEASURES = ("_current_progress_remaining", "exploration_rate", "start_time")
"""How far the learning is; everything else that Stable-Baselines3 saves beside tensors is the configuration's."""


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
    archived = state["model"]
    if not isinstance(archived, Tensor) or archived.dtype != torch.uint8 or archived.dim() != 1:
        raise CheckpointError("checkpoint: agent.model: expected the bytes of an agent; use another checkpoint")
    file = io.BytesIO(archived.cpu().numpy().tobytes())
    parameters = read_parameters(file, model, "checkpoint: agent.model")
    progress = _progress(_member(file, "data", "checkpoint: agent.model"))
    live = {name: _live(model, _known(name, LIVE), value) for name, value in _entries(state, "live")}
    episodes = {_known(name, DEQUES): _episodes(entries) for name, entries in _entries(state, "episodes")}
    replay = _replay(model, state["replay"]) if "replay" in state else {}
    model.set_parameters(parameters, device=model.device)
    for name, value in {**progress, **live}.items():
        setattr(model, name, value)
    for name, entries in episodes.items():
        setattr(model, name, deque(entries, maxlen=model._stats_window_size))
    for name, value in replay.items():
        setattr(model.replay_buffer, name, value)  # type: ignore[attr-defined]


def read_parameters(file: Any, model: BaseAlgorithm, name: str) -> dict[str, Any]:
    """Return the weights and optimisers that Stable-Baselines3's archive holds for an agent built like ``model``.

    Only tensors and plain containers are read; of an archive made by ``model.save`` the pickled part stays closed.

    Args:
        file: path or open file.
        model: an agent of the same configuration; it is not changed.
        name: the file's, for messages.

    Raises CheckpointError for a damaged or hostile archive, and for another agent's.
    """
    found = {}
    for part in model.get_parameters():
        given = decode(_member(file, f"{part}.pth", name), f"{name}: {part}")
        holder: Any = model
        for step in part.split("."):
            holder = getattr(holder, step)
        require_state(given, holder, f"agent.{part}")
        found[part] = given
    return found


def _member(file: Any, member: str, name: str) -> bytes:
    """Return one member of an archive, which must not say that it unpacks to more than the archive holds."""
    try:
        with zipfile.ZipFile(file) as archive:
            entry = archive.getinfo(member)
            if entry.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{name}: {member} is compressed, which an agent's is not; use another file")
            return archive.read(entry)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, *UNFIT) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{name}: not an agent's state ({one_line(error)}); use another one") from error


def _entries(state: Mapping[str, Any], name: str) -> Iterable[tuple[str, Any]]:
    return require_mapping(f"agent.{name}", state[name]).items()


def _progress(data: bytes) -> dict[str, Any]:
    values = require_mapping("agent.model.data", json.loads(data))
    for name, value in values.items():
        if _is_pickled(value):
            raise CheckpointError(f"checkpoint: agent.model: {name} is pickled and could run code when loaded; refused")
    counts = {name: require_count(f"agent.{name}", values[name]) for name in COUNTERS if name in values}
    return counts | {name: require_number(f"agent.{name}", values[name]) for name in MEASURES if name in values}


def _live(model: BaseAlgorithm, name: str, value: Any) -> Any:
    """Return what an agent carries along, checked against the agent's own or the spaces of its environments."""
    space, found = model.observation_space, _unpack(value)
    if name == "_last_lstm_states":
        own = model._last_lstm_states  # type: ignore[attr-defined]
        for given, like in zip(found, own, strict=True):
            for tensor, expected in zip(given, like, strict=True):
                require_tensor(f"agent.{name}", tensor, expected)
        return type(own)(*found)
    like = np.ones(model.n_envs, bool) if name == "_last_episode_starts" else np.zeros(space.shape or (), space.dtype)
    expected = like if name == "_last_episode_starts" else np.broadcast_to(like, (model.n_envs, *like.shape))
    require_tensor(f"agent.{name}", value, torch.from_numpy(expected.copy()))
    return found


def _episodes(entries: Any) -> list[Any]:
    """Return what is known of the last episodes: numbers, or mappings of names to numbers."""
    if not isinstance(entries, list):
        raise CheckpointError(f"checkpoint: agent.episodes: expected a list, got {type(entries).__name__}")
    for entry in entries:
        for value in entry.values() if isinstance(entry, Mapping) else [entry]:
            if not isinstance(value, bool):
                require_number("agent.episodes", value)
    return entries


def _replay(model: BaseAlgorithm, state: Any) -> dict[str, Any]:
    own: Any = getattr(model, "replay_buffer", None)
    given = dict(require_mapping("agent.replay", state))
    arrays = {name: value for name, value in vars(own).items() if isinstance(value, np.ndarray)} if own else {}
    if given.keys() != {"pos", "full", *arrays} or not isinstance(given["full"], bool):
        raise CheckpointError("checkpoint: agent.replay: not the memory of such an agent")
    if require_count("agent.replay.pos", given["pos"]) >= own.buffer_size:
        raise CheckpointError(f"checkpoint: agent.replay.pos: expected less than {own.buffer_size}, got {given['pos']}")
    for name, array in arrays.items():
        require_tensor(f"agent.replay.{name}", given[name], torch.from_numpy(array))
    return {name: _unpack(value) for name, value in given.items()}


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
        ((_, entries),) = value.items()
        return tuple(_unpack(entry) if isinstance(entry, dict) else entry for entry in entries)
    return value.numpy().copy() if isinstance(value, Tensor) else value
