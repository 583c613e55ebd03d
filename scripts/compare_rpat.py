"""Compare every method with and without robust perception under equal budgets, over seeds."""

import sys

from astra_env.commands.compare_rpat import main
from astra_env.config.command_line import run_main

if __name__ == "__main__":
    sys.exit(run_main(main))
