"""An attack's forward and backward passes through ``torch.compile``, at a few batch sizes only."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from astra_env.config.checks import COMPILE_MODES
from astra_env.errors import ConfigError

BUCKETS = 4
"""Batch sizes that are compiled: more waste less on padding and take longer to start."""


def bucket_sizes(largest: int, count: int = BUCKETS) -> tuple[int, ...]:
    """Return up to ``count`` rising sizes, evenly spaced, that end with ``largest``."""
    return tuple(sorted({math.ceil(largest * part / count) for part in range(1, count + 1)}))


class Compiled:
    """A forward function compiled for the sizes of an attack whose active set shrinks.

    Every batch is padded with black images to the next of a few sizes, so that shapes repeat: each size is compiled
    once. Passes without gradient (finished images' outputs) are left as they are: padding would cost them more than
    compiling saves. On CUDA ``mode="reduce-overhead"`` records CUDA graphs.

    Args:
        forward: maps images (n, 3, H, W) of any n to outputs (n, D), independently per image, with weights that stay
            in place, such as ``Folded(...).inner.forward``.
        largest: the largest n.
        mode: of ``torch.compile``.
        backend: of ``torch.compile``.

    Raises:
        ConfigError: for an unknown mode.
    """

    def __init__(
        self, forward: Callable[[Tensor], Tensor], largest: int, mode: str = "default", backend: Any = "inductor"
    ) -> None:
        if mode not in COMPILE_MODES[1:]:
            raise ConfigError(f"compile: expected one of {', '.join(COMPILE_MODES[1:])}, got {mode!r}")
        # A backend other than Inductor takes no mode.
        options = {"mode": mode} if backend == "inductor" else {"backend": backend}
        self.sizes = bucket_sizes(largest)
        self._forward = forward
        self._compiled = torch.compile(forward, dynamic=False, **options)  # type: ignore[call-overload]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the outputs of ``images``."""
        count = len(images)
        if not torch.is_grad_enabled() or count > self.sizes[-1]:
            return self._forward(images)
        size = next(size for size in self.sizes if size >= count)
        if images.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        padded = F.pad(images, (0,) * 7 + (size - count,)) if size > count else images
        outputs: Tensor = self._compiled(padded)
        return outputs[:count]
