"""Evaluate encoders and classifiers: probes, fine-tuning, attacks, curves, corruptions; one table for all of them."""

import sys

from astra_env.commands.evaluate import main
from astra_env.config.command_line import run_main

if __name__ == "__main__":
    sys.exit(run_main(main))
