"""How many cases the property tests of hostile input try, and what they damage."""

import math

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st


def cases(count):
    """Settings for ``count`` cases, times 20 under ``--hypothesis-profile=thorough``."""
    scaled = round(count * settings.default.max_examples / 100)
    return settings(max_examples=scaled, deadline=None, suppress_health_check=list(HealthCheck))


def paths(value, before=()):
    """All places in a state: keys of mappings and indices of lists, at any depth."""
    found = []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        found += [(*before, key), *paths(inner, (*before, key))]
    return found


def containers(value):
    """A copy of a state's mappings and lists that shares the tensors."""
    if isinstance(value, dict):
        return {key: containers(inner) for key, inner in value.items()}
    return [containers(inner) for inner in value] if isinstance(value, list) else value


def damaged(state, data, places):
    """A copy of ``state`` with one thing wrong at one of ``places``."""
    state, path = containers(state), data.draw(st.sampled_from(sorted(places, key=str)))
    parent = state
    for key in path[:-1]:
        parent = parent[key]
    wrong = damages(parent[path[-1]])
    choice = data.draw(st.integers(-1, len(wrong) - 1))
    if choice >= 0:
        parent[path[-1]] = wrong[choice]
    elif isinstance(parent, dict):
        del parent[path[-1]]
    else:
        parent.append(parent[path[-1]])
    return state


def damages(value):
    """What could stand in a checkpoint where ``value`` belongs, each surely wrong there."""
    if isinstance(value, torch.Tensor):
        wrong = [torch.cat((value.reshape(-1), value.reshape(-1)[:1] if value.numel() else torch.zeros(1)))]
        wrong.append(value.to(torch.complex64) if value.dtype != torch.uint8 else value.float())
        if value.is_floating_point() and value.numel():
            wrong += [value.to(torch.int64), torch.full_like(value, math.nan), torch.full_like(value, math.inf)]
        return [*wrong, None, "text", [1]]
    if isinstance(value, dict):
        return [None, 3, "text", torch.ones(2)]
    if isinstance(value, list):
        return [None, 3, [*value, *value, 0]]
    if isinstance(value, bool) or value is None:
        return ["text", [1], torch.ones(2)]
    if isinstance(value, int):
        return [-1, 1.5, None, "text", math.nan, torch.ones(2)]
    if isinstance(value, float):
        return [math.nan, math.inf, None, "text", torch.ones(2)]
    return [None, 3, b"", torch.ones(2)]


def same(first, second):
    """Whether two states agree in every bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return (
            isinstance(second, dict) and first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
        )
    if isinstance(first, list | tuple):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


def flipped(raw, data):
    """``raw`` with up to eight of its bits flipped, or cut off, or with some bytes replaced."""
    damaged = bytearray(raw)
    kind = data.draw(st.sampled_from(["flip", "cut", "patch"]))
    if kind == "cut":
        return raw[: data.draw(st.integers(0, len(raw) - 1))]
    if kind == "patch":
        start = data.draw(st.integers(0, len(raw) - 1))
        patch = data.draw(st.binary(min_size=1, max_size=16))
        damaged[start : start + len(patch)] = patch
        return bytes(damaged)
    for bit in data.draw(st.lists(st.integers(0, 8 * len(raw) - 1), min_size=1, max_size=8, unique=True)):
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)
