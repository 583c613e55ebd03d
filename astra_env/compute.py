"""How numbers are computed: on which device, how fast, in which precision, with which kernels.

What is faster at the price of rounding, and where it pays, is measured in benchmarks/NOTES.md.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from astra_env.config.options import SpeedOptions
from astra_env.errors import ConfigError

CHANNEL_BLOCK = 16
"""Channels that the widest CPU registers hold. oneDNN's kernels of AVX2 go wrong below their own block of 8."""

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@dataclass(frozen=True)
class Speed:
    """How passes through the network are computed.

    Attributes:
        autocast: dtype of the passes; None for float32. Losses, signs and perturbations stay in float32.
        channels_last: memory order wanted for network and images; :func:`memory_order` says whether it may be.
        fold_batchnorm: attack a copy of the network whose BatchNorms are folded into its weights.
        compile: mode of ``torch.compile`` for that copy, or "none".
        tf32: whether CUDA may round float32 products to TF32; None leaves PyTorch's setting.
    """

    autocast: torch.dtype | None = None
    channels_last: bool = False
    fold_batchnorm: bool = False
    compile: str = "none"
    tf32: bool | None = None

    @classmethod
    def of(cls, options: SpeedOptions, device: torch.device, *, foldable: bool = True) -> "Speed":
        """Return what a configuration asks for; ``fast`` stands for everything that pays on the device.

        Args:
            options: the configuration's section.
            device: where the passes run.
            foldable: whether the attack can do with a folded copy; without one, ``fast`` does not fold.
        """
        chosen = cls(
            autocast=torch.bfloat16 if options.precision == "bf16" else None,
            channels_last=options.channels_last,
            fold_batchnorm=options.fold_batchnorm,
            compile=options.compile,
            tf32=options.tf32 if device.type == "cuda" else None,
        )
        if not options.fast:
            return chosen
        return replace(
            chosen,
            autocast=torch.bfloat16 if multiplies_bf16(device) else chosen.autocast,
            channels_last=True,
            fold_batchnorm=foldable,
            compile=chosen.compile if foldable else "none",
            tf32=True if device.type == "cuda" and options.tf32 is None else chosen.tf32,
        )


def memory_order(network: nn.Module, device: torch.device, *, channels_last: bool) -> torch.memory_format:
    """Return the memory order in which a network and its images run; every caller that wants another one asks here.

    It is channels-last when that is wanted, except for a network on a CPU with a strided 1x1 convolution of fewer than
    ``CHANNEL_BLOCK`` channels. In the backward pass of such a layer oneDNN writes past its workspace on processors
    with AVX2 and without AVX-512: wrong gradients, crashes and hangs (github.com/uxlfoundation/oneDNN/issues/6035).

    Args:
        network: the network; the shortcuts of narrow ResNets are such layers.
        device: where it runs.
        channels_last: whether channels-last is wanted.
    """
    unsafe = device.type == "cpu" and any(_overruns(module) for module in network.modules())
    return torch.channels_last if channels_last and not unsafe else torch.contiguous_format


def _overruns(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d):
        return False
    strided = max(module.stride) > 1
    return strided and max(module.kernel_size) == 1 and module.in_channels // module.groups < CHANNEL_BLOCK


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16; elsewhere they would be emulated, and slow."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@contextmanager
def tf32(allowed: bool | None) -> Iterator[None]:
    """Let CUDA round the factors of float32 products to TF32, or forbid it, and restore the settings on the way out.

    None changes nothing: PyTorch's default allows it in convolutions and forbids it in matrix products.
    """
    if allowed is None:
        yield
        return
    products: Any = torch.backends.cuda.matmul
    convolutions: Any = torch.backends.cudnn
    before = products.fp32_precision, convolutions.conv.fp32_precision
    try:
        products.allow_tf32 = convolutions.allow_tf32 = allowed
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = (precision == "tf32" for precision in before)
        products.fp32_precision, convolutions.conv.fp32_precision = before


def resolve_device(name: str) -> torch.device:
    """Return the device called ``name``: cpu, cuda, cuda:N or auto (CUDA when there is one).

    Raises:
        ConfigError: for an unknown name, or CUDA where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {name} was asked for and PyTorch finds no CUDA device; use --device cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {name} was asked for, there are {torch.cuda.device_count()} CUDA devices")
    return device


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


def cpu_name() -> str:
    """Return the name of the processor, for what is measured on it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
