"""A run directory that rank 0 owns and every rank talks to."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from astra_env.distributed.world import World
from astra_env.errors import RunDirectoryError
from astra_env.storage.checkpoint import decode, encode
from astra_env.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def shared_state(world: World, state: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return rank 0's state (tensors and plain containers, or None) on every rank; the others give None."""
    if world.alone:
        return state
    data = world.send(encode(state) if state is not None else None)
    return None if data is None else decode(data, "state from rank 0")


class SharedRun:
    """What :class:`RunDirectory` offers, written by rank 0 alone; use as a context manager.

    The other ranks need no access to the directory: checkpoints reach them through the process group.

    Args:
        world: the ranks.
        path: the directory.
        open_directory: opens it; called on rank 0.

    Raises:
        RunDirectoryError: on every rank, when rank 0 cannot have the directory.
    """

    def __init__(self, world: World, path: str | Path, open_directory: Callable[[], RunDirectory]) -> None:
        self.world = world
        self.path = Path(path)
        self._stack = ExitStack()
        self._directory: RunDirectory | None = None
        refused = ""
        if world.main:
            try:
                self._directory = self._stack.enter_context(open_directory())
            except RunDirectoryError as error:
                refused = str(error)
        refused = (world.send(refused.encode()) or b"").decode()
        if refused:
            raise RunDirectoryError(refused)

    @property
    def directory(self) -> RunDirectory:
        """The directory itself, on rank 0."""
        assert self._directory is not None, "only rank 0 has the directory"
        return self._directory

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.path / "checkpoints"

    @property
    def writer(self) -> "SummaryWriter":
        """The TensorBoard writer, on rank 0."""
        return self.directory.writer

    def log(self, step: int, values: Mapping[str, float | list[float]]) -> None:
        """Write one line of metrics."""
        if self._directory is not None:
            self._directory.log(step, values)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics written so far; none on other ranks than 0."""
        return [] if self._directory is None else self._directory.metrics()

    def save(self, state: Mapping[str, Any], *, keep_as: str | None = None) -> None:
        """Write a checkpoint: rank 0's state, which is that of every rank."""
        if self._directory is not None:
            self._directory.save(state, keep_as=keep_as)

    def restore(self) -> dict[str, Any] | None:
        """Return the newest whole checkpoint on every rank, None when there is none."""
        state = self._directory.restore() if self._directory is not None else None
        return shared_state(self.world, state)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary."""
        if self._directory is not None:
            self._directory.write_summary(summary)

    def close(self) -> None:
        """Give the directory free."""
        self._stack.close()

    def __enter__(self) -> "SharedRun":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
