"""Train a network adversarially under a learned (or any other) attack strategy: an encoder, a classifier, yours."""

import sys

from astra_env.commands.train import main
from astra_env.config.command_line import run_main

if __name__ == "__main__":
    sys.exit(run_main(main))
