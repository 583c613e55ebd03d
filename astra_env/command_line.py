"""What every script's front shares: errors a user can meet become one line on stderr and exit status 2."""

import errno
import sys
from collections.abc import Callable

from astra_env.errors import AstraError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
"""What a full, read-only, broken or vanished disk answers."""


def run_main(main: Callable[[], int | None]) -> int:
    """Run a script's ``main`` and return the exit status for ``sys.exit``.

    ``main`` returns a status or None for success. An AstraError is printed as ``error: ...`` on stderr and gives 2;
    Ctrl-C gives 130. What a disk refuses while figures or tables are written is no defect either. Anything else is one
    and keeps its traceback.
    """
    try:
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
