"""Train a Stable-Baselines3 agent to choose the attacks of adversarial trainings."""

import sys

from astra_env.commands.sb3 import main
from astra_env.config.command_line import run_main

if __name__ == "__main__":
    sys.exit(run_main(main))
