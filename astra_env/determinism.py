"""Deterministic kernels for as long as they are wanted."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Let PyTorch use deterministic kernels only, and restore its settings on the way out; nothing when not enabled.

    On the CPU this package's trainings are deterministic without it. On CUDA cuBLAS reads its own setting when it first
    starts in a process, so a process that has multiplied matrices before should have set
    ``CUBLAS_WORKSPACE_CONFIG=:4096:8`` itself. An operation that has no deterministic kernel raises RuntimeError, named
    by PyTorch.
    """
    if not enabled:
        yield
        return
    strict, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(_CUBLAS)
    try:
        os.environ.setdefault(_CUBLAS, ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(_CUBLAS, None)
