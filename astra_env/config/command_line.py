"""What every script's front shares: errors a user can meet become one line on stderr and exit status 2."""

import errno
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from astra_env.errors import AstraError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
"""What a full, read-only, broken or vanished disk answers."""


def run_main(main: Callable[[], int | None]) -> int:
    """Run a script's ``main`` and return the exit status for ``sys.exit``; warnings take one line, once.

    ``main`` returns a status or None for success. An AstraError is printed as ``error: ...`` on stderr and gives 2;
    Ctrl-C gives 130. What a disk refuses while figures or tables are written is no defect either. Anything else is one
    and keeps its traceback.
    """
    try:
        with warnings_in_one_line():
            return main() or 0
    except AstraError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: disk: {error.strerror}{where}; checkpoints are whole; make room, then go on", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Print every UserWarning as one line on stderr, once per text, without the source line that Python adds."""
    told: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, UserWarning):
            usual(message, category, *place, **more)
        elif str(message) not in told:
            told.add(str(message))
            print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        usual, warnings.showwarning = warnings.showwarning, show
        yield
