"""The run directory: one run's configuration, metrics, TensorBoard events, checkpoints and summary.

``config.yaml``, ``metrics.jsonl``, ``checkpoints/last.pt`` (its predecessor ``previous.pt`` and kept ones beside it),
``summary.json``, TensorBoard events, figures. One process at a time owns a directory.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from astra_env.config.paths import user_path
from astra_env.errors import CheckpointError, RunDirectoryError
from astra_env.storage.checkpoint import encode, load_checkpoint, write_atomically
from astra_env.storage.run_lock import NO_LINKS, acquire, release, remove_leftovers

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


class RunDirectory:
    """Owns a run directory from construction to :meth:`close`; use as a context manager.

    Args:
        path: the directory; created when absent.
        config_yaml: the fully resolved configuration, written to ``config.yaml``.
        resume: continue the run that lives there. Without it a directory that already holds a run is refused.
        renew: write the configuration again on resume, since its data has moved.

    Raises:
        RunDirectoryError: when the directory cannot be written, is in use, holds another run, or holds none to resume.
    """

    def __init__(self, path: str | Path, config_yaml: str, *, resume: bool = False, renew: bool = False) -> None:
        self.path = user_path("run_dir", path)
        self._writer: SummaryWriter | None = None
        self._cut_to: int | None = None
        self._purge_step: int | None = None
        self._check_occupied(resume)
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = acquire(self.path)
            remove_leftovers(self.path)
            if not resume or renew or not (self.path / "config.yaml").exists():
                write_atomically(self.path / "config.yaml", config_yaml.encode())
            self._metrics = open(self.metrics_path, "ab")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise RunDirectoryError(
                f"run_dir: cannot write {self.path} ({error.strerror}); choose a writable --run_dir"
            ) from error

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are."""
        return self.path / "checkpoints"

    @property
    def metrics_path(self) -> Path:
        """The metrics file: one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def writer(self) -> "SummaryWriter":
        """The TensorBoard writer, opened at first use."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.path), purge_step=self._purge_step)
        return self._writer

    def log(self, step: int, values: Mapping[str, float | list[float]]) -> None:
        """Append one line to ``metrics.jsonl`` and the same scalars to TensorBoard; a list becomes one scalar each.

        Raises RunDirectoryError when the disk refuses.
        """
        self._cut()
        with self.refusals():
            self._metrics.write((json.dumps({"step": step, **values}) + "\n").encode())
            self._mirror(step, values)

    def _mirror(self, step: int, values: Mapping[str, float | list[float]]) -> None:
        for name, value in values.items():
            if isinstance(value, list):
                for index, entry in enumerate(value):
                    self.writer.add_scalar(f"{name}/{index:02d}", entry, step)
            else:
                self.writer.add_scalar(name, value, step)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl`` written so far."""
        self._cut()
        with self.refusals():
            self._metrics.flush()
        return self._lines()

    def save(self, state: Mapping[str, Any], *, keep_as: str | None = None) -> None:
        """Write ``checkpoints/last.pt`` atomically; the one before becomes ``previous.pt``.

        The length of ``metrics.jsonl`` is stored with it, so that a resumed run continues the file exactly there.

        Args:
            state: tensors and plain containers.
            keep_as: also keep the checkpoint for good under this name, such as ``"step_1000"``.
        """
        self._cut()
        last, previous = self.checkpoints / "last.pt", self.checkpoints / "previous.pt"
        with self.refusals():
            self._metrics.flush()
            os.fsync(self._metrics.fileno())
            if self._writer is not None:
                self._writer.flush()
            data = encode({**state, "metrics_bytes": self._metrics.tell()})
            if keep_as is not None:
                write_atomically(self.checkpoints / f"{keep_as}.pt", data)
            if last.exists():
                _link_over(last, previous)
            write_atomically(last, data)

    def restore(self) -> dict[str, Any] | None:
        """Return the newest whole checkpoint, or None when there is none.

        A damaged ``last.pt`` is reported and ``previous.pt`` is used. The metrics are cut back to the checkpoint when
        the run goes on (at the next :meth:`log`, :meth:`metrics` or :meth:`save`), so that a checkpoint that turns out
        to belong to something else has changed nothing.

        Raises:
            CheckpointError: when checkpoints exist but none is whole.
        """
        candidates = [self.checkpoints / "last.pt", self.checkpoints / "previous.pt"]
        problems = []
        for path in (candidate for candidate in candidates if candidate.exists()):
            try:
                state = load_checkpoint(path)
            except CheckpointError as error:
                logger.warning("%s; falling back to the checkpoint before it", error)
                problems.append(str(error))
                continue
            self._cut_to = _whole_number(state.get("metrics_bytes", 0), path)
            return state
        if problems:
            raise CheckpointError(f"{self.path}: no whole checkpoint is left: {'; '.join(problems)}")
        self._cut_to = 0
        return None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json`` atomically; raises RunDirectoryError when the disk refuses."""
        with self.refusals():
            write_atomically(self.path / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Turn what the disk says into an error that tells the user what to do."""
        try:
            yield
        except OSError as error:
            raise RunDirectoryError(
                f"run_dir: cannot write to {self.path} ({error.strerror or error}); the last good checkpoint is "
                "intact; make room, then --resume"
            ) from error

    def close(self) -> None:
        """Flush what the disk takes and give the directory free."""
        try:
            self._metrics.close()
            self._close_writer()
        except OSError as error:
            # Whatever a checkpoint counts on was flushed before it was written.
            logger.warning("run_dir: the last lines of %s were not written (%s)", self.path, error.strerror or error)
        finally:
            release(self._lock)

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_occupied(self, resume: bool) -> None:
        occupied = (self.path / "config.yaml").exists() or (self.checkpoints / "last.pt").exists()
        if occupied and not resume:
            raise RunDirectoryError(
                f"run_dir: {self.path} already holds a run; continue it with --resume or choose another --run_dir"
            )
        if self.path.exists() and not self.path.is_dir():
            raise RunDirectoryError(f"run_dir: {self.path} is a file; choose another --run_dir")

    def _cut(self) -> None:
        """Cut the metrics back to the restored checkpoint, and TensorBoard's curves with them."""
        if self._cut_to is None:
            return
        with self.refusals():
            self._metrics.flush()
            there = self.metrics_path.stat().st_size
            if there < self._cut_to:
                logger.warning(
                    "%s: %d bytes that were there at the last checkpoint are missing; the run goes on without them",
                    self.metrics_path,
                    self._cut_to - there,
                )
            os.truncate(self.metrics_path, min(self._cut_to, there))
            self._close_writer()
        self._cut_to = None
        lines = self._lines()
        self._purge_step = lines[-1]["step"] + 1 if lines else 0

    def _lines(self) -> list[dict[str, Any]]:
        """Return what the metrics file holds; raises RunDirectoryError naming the first damaged line."""
        lines = []
        for number, line in enumerate(self.metrics_path.read_bytes().splitlines(), start=1):
            try:
                lines.append({**json.loads(line)})
                if not isinstance(lines[-1]["step"], int):
                    raise TypeError("step is no number")
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise RunDirectoryError(
                    f"run_dir: {self.metrics_path}, line {number} is damaged; mend or remove it, then --resume"
                ) from error
        return lines

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


def _link_over(source: Path, target: Path) -> None:
    """Give ``source`` the second name ``target`` in one step, replacing what was there."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        write_atomically(target, source.read_bytes())
    else:
        os.replace(temporary, target)
        # Does nothing where both are names of one file: a process died between this and writing the next checkpoint.
        temporary.unlink(missing_ok=True)


def _whole_number(value: Any, path: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CheckpointError(f"{path}: metrics_bytes: expected an integer >= 0, got {value!r}; use another checkpoint")
    return value
