"""Export a network: plain weights under torchvision's and timm's names, ONNX, and onwards to a folder or the hub."""

import sys

from astra_env.commands.export import main
from astra_env.config.command_line import run_main

if __name__ == "__main__":
    sys.exit(run_main(main))
