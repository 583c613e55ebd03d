"""In which modes of PyTorch this package computes: its own, whatever modes its caller is in.

A caller may step an environment under ``no_grad``, ``inference_mode`` or ``autocast``, or have set a default dtype,
device or precision for networks of its own. None of that may break a training or change its numbers.
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

from astra_env.compute import deterministic_algorithms
from astra_env.errors import ConfigError

_Method = TypeVar("_Method", bound=Callable[..., Any])
_INSIDE: ContextVar[bool] = ContextVar("inside own_modes", default=False)


@contextmanager
def own_modes(*, threads: int | None = None, deterministic: bool = False) -> Iterator[None]:
    """Compute as in a fresh process, whatever modes of PyTorch the caller is in, and give them back on the way out.

    Gradients are recorded, inference mode and autocast are off, factories make float32 tensors on the CPU, anomalies
    are not hunted, and float32 products have PyTorch's own precision. Tensors of the caller's inference mode may come
    in as data.

    Args:
        threads: CPU threads; default the process's number, which can change how sums are rounded.
        deterministic: use deterministic kernels only.

    Raises:
        ConfigError: for several threads in a forked process, where OpenMP would wait for ever.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_without_autocast())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.get_default_dtype() != torch.float32:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        if torch.is_anomaly_enabled():
            stack.callback(torch.autograd.set_detect_anomaly, True, torch.is_anomaly_check_nan_enabled())
            torch.autograd.set_detect_anomaly(False)
        if not _INSIDE.get():  # what the outermost call chose for the whole process stands
            stack.callback(_INSIDE.reset, _INSIDE.set(True))
            stack.enter_context(_own_precision())
            stack.enter_context(_own_kernels(deterministic))
            stack.enter_context(_own_threads(threads))
        yield


def at_the_door(method: _Method) -> _Method:
    """Let a method compute in :func:`own_modes`, with the threads and kernels of its object's ``config.run``.

    A constructor's configuration is its first argument.
    """

    @functools.wraps(method)
    def inside(self: Any, *arguments: Any, **named: Any) -> Any:
        config = getattr(self, "config", None) or (arguments[0] if arguments else named.get("config"))
        run = getattr(config, "run", None)
        with own_modes(threads=getattr(run, "threads", None), deterministic=getattr(run, "deterministic", False)):
            return method(self, *arguments, **named)

    return inside  # type: ignore[return-value]


@contextmanager
def _without_autocast() -> Iterator[None]:
    """Switch autocast off, and its nesting back to none: casts are cached until the outermost autocast ends."""
    enabled = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    depth, cached = torch.autocast_increment_nesting() - 1, torch.is_autocast_cache_enabled()
    torch.autocast_decrement_nesting()
    if not enabled and depth == 0 and cached:
        yield
        return
    try:
        for _ in range(depth):
            torch.autocast_decrement_nesting()
        for kind in enabled:
            torch.set_autocast_enabled(kind, False)
        torch.set_autocast_cache_enabled(True)
        torch.clear_autocast_cache()
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(cached)
        for kind in enabled:
            torch.set_autocast_enabled(kind, True)
        for _ in range(depth):
            torch.autocast_increment_nesting()


def _precisions() -> list[tuple[Any, str]]:
    """Return whatever says how float32 products are rounded, with the value that a fresh process has."""
    backends: Any = torch.backends
    plain = (backends, backends.cuda.matmul, backends.cudnn, backends.mkldnn, backends.mkldnn.matmul)
    return [
        *((entry, "none") for entry in (*plain, backends.mkldnn.conv)),
        *((entry, "tf32") for entry in (backends.cudnn.conv, backends.cudnn.rnn)),
    ]


@contextmanager
def _own_precision() -> Iterator[None]:
    own = _precisions()
    before = [entry.fp32_precision for entry, _ in own]
    if before == [value for _, value in own]:
        yield
        return
    try:
        for entry, value in own:
            entry.fp32_precision = value
        yield
    finally:
        for (entry, _), value in zip(own, before, strict=True):
            entry.fp32_precision = value


@contextmanager
def _own_kernels(deterministic: bool) -> Iterator[None]:
    strict, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    cudnn = torch.backends.cudnn
    benchmark, fixed = cudnn.benchmark, cudnn.deterministic
    try:
        if strict or warn_only:
            torch.use_deterministic_algorithms(False)
        cudnn.benchmark = cudnn.deterministic = False
        with deterministic_algorithms(deterministic):
            yield
    finally:
        cudnn.benchmark, cudnn.deterministic = benchmark, fixed
        if strict or warn_only:
            torch.use_deterministic_algorithms(strict, warn_only=warn_only)


@contextmanager
def _own_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is None or threads == before:
        yield
        return
    if threads > 1 and _FORKED:
        raise ConfigError(
            f"run.threads: a forked process computes on one thread, got {threads}: OpenMP would wait for ever; "
            "set it to 1, or start workers by 'spawn' or 'forkserver'"
        )
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_FORKED: list[int] = []
"""The process's own id when it was forked from one that had imported this module."""


def _after_fork() -> None:
    """Put a forked process on one thread: the others of OpenMP's pool are the parent's, and waiting for them hangs."""
    _FORKED.append(os.getpid())
    torch.set_num_threads(1)


os.register_at_fork(after_in_child=_after_fork)
