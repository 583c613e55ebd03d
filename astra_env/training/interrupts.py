"""Stopping a run without losing anything: the first signal asks, the second insists."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal asked work to stop that is broken off where it is and keeps what it has written."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.exit_status = 128 + number


class GracefulStop:
    """Turns the first SIGINT or SIGTERM into a request to stop; a second one ends the process at once.

    Use as a context manager around a loop that looks at :attr:`requested` after each step, writes its checkpoint and
    leaves with :attr:`exit_status`: 128 plus the signal's number (130 for SIGINT, 143 for SIGTERM). Outside the main
    thread, where Python allows no handlers, it does nothing.

    Args:
        at_once: raise :class:`Interrupted` wherever the work is; for work whose files are whole at every moment.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.at_once = at_once
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
        if self.at_once:
            raise Interrupted(number)
