"""Stopping a run without losing anything: the first signal asks, the second insists."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulStop:
    """Turns the first SIGINT or SIGTERM into a request to stop; a second one ends the process at once.

    Use as a context manager around a loop that looks at :attr:`requested` after each step, writes its checkpoint and
    leaves with :attr:`exit_status`: 128 plus the signal's number (130 for SIGINT, 143 for SIGTERM). Outside the main
    thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal_number is not None

    @property
    def exit_status(self) -> int:
        """The exit status that belongs to the signal; 0 when none came."""
        return 0 if self.signal_number is None else 128 + self.signal_number

    def __enter__(self) -> "GracefulStop":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(128 + number)
        self.signal_number = number


class Interrupted(KeyboardInterrupt):
    """A signal asked work to stop that is broken off where it is and keeps what it has written."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.exit_status = 128 + number


@contextmanager
def breaking_off() -> Iterator[None]:
    """Let the first SIGINT or SIGTERM raise :class:`Interrupted` wherever the work is; a second one ends the process.

    For work whose files are whole at every moment. Outside the main thread it does nothing.
    """
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if came:
            os._exit(128 + number)
        came.append(number)
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
