"""Train a robust classifier: PGD-AT, TRADES, MART, Consistency-AT or ReBAT, with or without robust perception."""

import sys

from astra_env.commands.rpat import main
from astra_env.config.command_line import run_main

if __name__ == "__main__":
    sys.exit(run_main(main))
