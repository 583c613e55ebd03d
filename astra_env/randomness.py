"""Every generator, its seed and its state.

Generators derive from one seed, one for each purpose, so that no part of a run disturbs another's randomness.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def derive_seed(seed: int, purpose: str) -> int:
    """Return a 63-bit seed that depends on ``seed`` and ``purpose`` and nothing else."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on ``device`` seeded for one purpose of a run."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose))


def random_state(random: np.random.Generator) -> dict[str, str]:
    """Return a PCG64 generator's state; as text, because its numbers have 128 bits."""
    state: Any = random.bit_generator.state
    # Half of a 64-bit draw may wait for the next 32-bit one, so it belongs to the state.
    waiting = {name: str(state[name]) for name in ("has_uint32", "uinteger")}
    return {**{name: str(value) for name, value in state["state"].items()}, **waiting}


def set_random_state(random: np.random.Generator, state: Mapping[str, str]) -> None:
    """Continue where :func:`random_state` was taken; a state of version 0.1.0 may lack the waiting half of a draw."""
    numbers = {"has_uint32": 0, "uinteger": 0, **{name: int(value) for name, value in state.items()}}
    random.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": numbers["state"], "inc": numbers["inc"]},
        "has_uint32": numbers["has_uint32"],
        "uinteger": numbers["uinteger"],
    }
