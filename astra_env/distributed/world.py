"""The ranks of a run and how they exchange rows, numbers and decisions."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from astra_env.compute import resolve_device
from astra_env.errors import ConfigError

Rows = TypeVar("Rows")


@dataclass(frozen=True, eq=False)
class World:
    """This process's place among the ``size`` processes of a run; alone by default, and then everything is free.

    A batch of N rows is split into ``size`` equal parts in the order of the ranks. Whoever calls a method that
    exchanges something must be joined by every other rank.

    Attributes:
        rank: 0 ... size - 1; rank 0 logs and writes.
        size: number of processes.
        local_rank: index of this process on its machine, and of its CUDA device.
        device: where exchanged tensors live: CUDA for NCCL, else the CPU.
        traffic: bytes this rank has put into each kind of exchange so far (its own share, not what the wires carry).
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    traffic: Counter[str] = field(default_factory=Counter)

    @property
    def main(self) -> bool:
        """Whether this rank logs and writes."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""
        return self.size == 1

    def resolve(self, name: str) -> torch.device:
        """Return the configured device of this rank; raises ConfigError when it cannot be had."""
        if self.alone:
            return resolve_device(name)
        if name.startswith("cuda:"):
            raise ConfigError(f"device: {name} is one device, there are {self.size} processes; use --device cuda")
        device = resolve_device(name)
        return torch.device("cuda", self.local_rank) if device.type == "cuda" else device

    def share(self, count: int, name: str = "learner.batch_size") -> slice:
        """Return which of ``count`` rows are this rank's; raises ConfigError when they cannot be split evenly."""
        if count % self.size or count < self.size:
            raise ConfigError(f"{name}: expected a multiple of the {self.size} processes, got {count}")
        own = count // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def own(self, rows: Any, groups: int = 1) -> Any:
        """Return this rank's rows of a tensor, array or strategy that describes the whole batch.

        Args:
            rows: N rows of anything that can be sliced.
            groups: the batch is so many batches, one behind the other (views of the same images), each split alike.
        """
        if self.alone:
            return rows
        if groups == 1:
            return rows[self.share(len(rows))]
        parts = rows.reshape(groups, -1, *rows.shape[1:])
        return parts[:, self.share(parts.shape[1])].flatten(0, 1)

    def whole(self, own: Tensor) -> Tensor:
        """Return a tensor of the whole batch's shape, dtype and device without its values (and without its memory)."""
        return own if self.alone else own[:1].expand(self.size * len(own), *own.shape[1:])

    def gather(self, own: Tensor) -> Tensor:
        """Return the rows of all ranks in their order, without gradient; every rank gives as many."""
        if self.alone:
            return own
        sent = own.detach().to(self.device).contiguous()
        received = sent.new_empty(self.size * len(sent), *sent.shape[1:])
        _all_gather(received, sent)
        self.count("all_gather", sent)
        return received.to(own.device)

    def join(self, own: Tensor) -> Tensor:
        """Return the rows of all ranks, differentiable in this rank's own rows.

        Every rank then computes the same loss of all rows, so the gradient that reaches a rank's rows is complete: the
        backward pass exchanges nothing. (Splitting the loss by rows instead would save W - 1 of W similarity matrices
        and cost a reduce-scatter of all features' gradients.)
        """
        if self.alone:
            return own
        mine = self.share(self.size * len(own))
        rows = self.gather(own)
        return torch.cat((rows[: mine.start], own, rows[mine.stop :]))

    def same(self, value: Rows) -> Rows:
        """Return rank 0's tensor or array; the others give one of the same shape and dtype."""
        if self.alone:
            return value
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        shared = tensor.to(self.device, copy=True).contiguous()
        dist.broadcast(shared, 0)
        self.count("broadcast", shared)
        return shared.to(tensor.device) if isinstance(value, Tensor) else shared.cpu().numpy()  # type: ignore[return-value]

    def mean(self, value: Tensor) -> Tensor:
        """Return the ranks' mean of a small tensor, without gradient."""
        return value if self.alone else self.total(value) / self.size

    def mean_of_known(self, value: Tensor | None) -> Tensor | None:
        """Return the mean of a scalar over the ranks that know it; zero where none does, as one rank's None."""
        if self.alone:
            return value
        known = torch.tensor(float("nan")) if value is None else value.float()
        return self.gather(known[None].to(self.device)).nanmean().nan_to_num()

    def total(self, value: Tensor) -> Tensor:
        """Return the ranks' sum of a small tensor, without gradient."""
        return self._reduced(value, dist.ReduceOp.SUM)

    def maximum(self, value: int) -> int:
        """Return the largest of the ranks' whole numbers; waits for the device."""
        return value if self.alone else int(self._reduced(torch.tensor(value), dist.ReduceOp.MAX))

    def agreed(self, value: bool) -> bool:
        """Return rank 0's answer to a question."""
        return value if self.alone else bool(self.same(torch.tensor(int(value))))

    def send(self, data: bytes | None) -> bytes | None:
        """Return rank 0's bytes on every rank, or None where it has none; the others' are not looked at."""
        if self.alone:
            return data
        length = int(self.same(torch.tensor(-1 if data is None else len(data))))
        if length < 1:
            return None if length < 0 else b""
        mine = np.frombuffer(data or b"", dtype=np.uint8) if self.main else np.empty(length, dtype=np.uint8)
        return self.same(mine).tobytes()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let rank 0 pass through the block before the others, which find what it has left on the disk."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def wait(self) -> None:
        """Wait until every rank is here."""
        if not self.alone:
            self.total(torch.zeros(1))

    def _reduced(self, value: Tensor, how: Any) -> Tensor:
        if self.alone:
            return value
        shared = value.detach().to(self.device, copy=True)
        dist.all_reduce(shared, how)
        self.count("all_reduce", shared)
        return shared.to(value.device)

    def count(self, kind: str, sent: Tensor) -> None:
        """Add what this rank puts into an exchange to :attr:`traffic`."""
        self.traffic[kind] += sent.numel() * sent.element_size()


def _all_gather(received: Tensor, sent: Tensor) -> None:
    # PyTorch 2.14 gave it another name and warns of the old one.
    getattr(dist, "all_gather_single", dist.all_gather_into_tensor)(received, sent)


ALONE = World()
"""One process without a process group."""


def world_of(learner: Any) -> World:
    """Return the ranks that a learner is spread over."""
    return getattr(learner, "world", ALONE)
