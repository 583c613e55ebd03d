"""Train the same encoder under several methods and attacks, at equal training steps or equal attack budgets."""

import sys

from astra_env.commands.compare import main
from astra_env.config.command_line import run_main

if __name__ == "__main__":
    sys.exit(run_main(main))
