"""The accuracy-robustness trade-off of finished runs in one figure.

python -m rpat.tradeoff runs/pgd_at runs/trades --out tradeoff.png
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from astra_env.config.command_line import run_main
from astra_env.errors import DataError

if TYPE_CHECKING:
    from astra_env.plotting.perception import TradeoffPoint


def read_points(run_dirs: Sequence[str | Path]) -> list["TradeoffPoint"]:
    """Return one point per run directory from its ``summary.json``: test accuracy, clean and under PGD.

    Runs of one method share a colour; robust perception fills the marker.

    Raises:
        DataError: naming the directory that holds no finished and tested run.
    """
    from astra_env.plotting.perception import TradeoffPoint

    points = []
    for folder in map(Path, run_dirs):
        try:
            summary = json.loads((folder / "summary.json").read_text())
            clean = summary["test"]["clean"]["accuracy"]
            (robust,) = (value["accuracy"] for name, value in summary["test"].items() if name != "clean")
            point = TradeoffPoint(
                folder.name, clean, robust, group=summary["method"], filled=summary["robust_perception"]
            )
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{folder}: holds no finished, tested run ({error}); finish it with --resume") from error
        points.append(point)
    return points


def plot_runs(run_dirs: Sequence[str | Path], out: str | Path) -> Path:
    """Draw the runs' trade-off into ``out`` and return its path."""
    from astra_env.plotting.perception import plot_tradeoff
    from astra_env.plotting.style import save

    return save(plot_tradeoff(read_points(run_dirs), robust_label="accuracy under PGD (%)"), out)


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", nargs="+")
    parser.add_argument("--out", default="tradeoff.png")
    options = parser.parse_args()
    print(plot_runs(options.run_dirs, options.out))


if __name__ == "__main__":
    sys.exit(run_main(main))
