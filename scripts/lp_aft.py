"""Post-process an encoder by LP-AFT: linear probe and adversarial fine-tuning on its own pseudo-labels."""

import sys

from astra_env.commands.lp_aft import main
from astra_env.config.command_line import run_main

if __name__ == "__main__":
    sys.exit(run_main(main))
