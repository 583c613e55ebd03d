"""Parameter gradients of a loss that is spread over ranks, and over chunks of a batch that memory cannot hold."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from astra_env.distributed.world import World

Encode = Callable[[Tensor, str], Tensor]


class _Call(nn.Module):
    """A module whose forward pass is whatever function it is given; it owns the parameters that the function uses."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.used = nn.ParameterList(parameters)

    def forward(self, compute: Callable[[], Tensor]) -> Tensor:
        return compute()


class SharedGradients:
    """Backward passes after which every rank holds the same gradients: DistributedDataParallel.

    The module that DDP wraps is the whole loss, not the network: a loss encodes clean and adversarial views through
    different branches, in any number of forward passes, and DDP wants to see one forward for one backward. Branches
    that a loss does not use are found by DDP and keep no gradient. Buffers stay each rank's own
    (:func:`astra_env.distributed.average_statistics`).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], world: World) -> None:
        self.world = world
        self._parallel: DistributedDataParallel | None = None
        if not world.alone:
            with warnings.catch_warnings():
                # Newer versions have another name for broadcast_buffers, which older ones do not know.
                warnings.simplefilter("ignore", FutureWarning)
                self._parallel = DistributedDataParallel(
                    _Call(parameters), broadcast_buffers=False, find_unused_parameters=True
                )
            self._parallel.register_comm_hook(world, _counted_mean)

    def backward(self, compute: Callable[[], Tensor], *, joint: bool = False, last: bool = True) -> None:
        """Add the gradients of the loss that ``compute`` returns to the parameters'.

        Args:
            compute: computes a scalar from the network.
            joint: the scalar is the loss of all ranks' rows, of which this rank differentiates its own (the ranks'
                gradients are summed); else it is the mean over this rank's rows (they are averaged).
            last: exchange gradients now; False collects those of a first chunk.
        """
        if self._parallel is None:
            compute().backward()  # type: ignore[no-untyped-call]
            return
        with nullcontext() if last else self._parallel.no_sync():
            loss: Tensor = self._parallel(compute)
            (loss * self.world.size if joint else loss).backward()  # type: ignore[no-untyped-call]


def _counted_mean(world: World, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's own reduction, counted."""
    world.count("gradients", bucket.buffer())
    return allreduce_hook(dist.group.WORLD, bucket)  # type: ignore[arg-type]


@dataclass
class _Encoded:
    views: Tensor
    branch: str
    features: Tensor


class CachedFeatures:
    """Two passes that make a large batch out of chunks: gradient caching (GradCache, Gao et al. 2021).

    First pass: the features of all rows without a graph, chunk by chunk; the loss of all of them, and its gradient with
    respect to the features. Second pass: each chunk once more, with a graph, into which that gradient is fed. Memory
    holds one chunk's graph and all features; negatives are global; one forward pass in three is the price.

    Args:
        encode: maps views (n, 3, H, W) and a branch to features (n, D).
        module: the network behind ``encode``; its buffers are put back after the first pass, so that running
            statistics see every chunk once.
        chunks: number of chunks, at most the number of rows.
    """

    def __init__(self, encode: Encode, module: nn.Module, chunks: int) -> None:
        self._encode = encode
        self._module = module
        self._chunks = chunks
        self._encoded: list[_Encoded] = []

    def encode(self, views: Tensor, branch: str) -> Tensor:
        """Return features (N, D) that collect the gradient of whatever is computed from them."""
        with buffers_kept(self._module), torch.no_grad():
            parts = [self._encode(part, branch) for part in views.tensor_split(self._chunks)]
        features = torch.cat(parts).requires_grad_()
        self._encoded.append(_Encoded(views, branch, features))
        return features

    def backward(self, compute: Callable[[], Tensor], gradients: SharedGradients) -> None:
        """Differentiate the loss of all ranks' rows that ``compute`` makes from :meth:`encode`'s features.

        What else it uses, such as a head of its own on the features, gets its gradient in the first pass.
        """
        gradients.backward(compute, joint=True, last=False)
        used = [(entry, entry.features.grad) for entry in self._encoded if entry.features.grad is not None]
        for chunk in range(self._chunks):
            last = chunk + 1 == self._chunks
            gradients.backward(partial(self._surrogate, used, chunk), last=last)
        self._encoded.clear()

    def _surrogate(self, used: list[tuple[_Encoded, Tensor]], chunk: int) -> Tensor:
        """Return a scalar whose gradient is that of the loss, as far as it passes through one chunk."""
        parts = []
        for entry, signal in used:
            views, own = entry.views.tensor_split(self._chunks)[chunk], signal.tensor_split(self._chunks)[chunk]
            parts.append((self._encode(views, entry.branch) * own).sum())
        return torch.stack(parts).sum()


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Put the module's buffers, such as running statistics, back on the way out."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
