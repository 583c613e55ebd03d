"""What every script's front shares: errors a user can meet become one line on stderr and exit status 2."""

import sys
from collections.abc import Callable

from astra_env.errors import AstraError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def run_main(main: Callable[[], int | None]) -> int:
    """Run a script's ``main`` and return the exit status for ``sys.exit``.

    ``main`` returns a status or None for success. An AstraError is printed as ``error: ...`` on stderr and gives 2;
    Ctrl-C gives 130. Anything else is a defect and keeps its traceback.
    """
    try:
        return main() or 0
    except AstraError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
