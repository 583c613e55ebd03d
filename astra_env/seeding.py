"""Generators derived from one seed, one for each purpose, so that no part of a run disturbs another's randomness."""

import hashlib

import torch


def derive_seed(seed: int, purpose: str) -> int:
    """Return a 63-bit seed that depends on ``seed`` and ``purpose`` and nothing else."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on ``device`` seeded for one purpose of a run."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose))
