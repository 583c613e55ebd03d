"""Print the lowest version that pyproject.toml declares of every dependency, as pip's constraints."""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def floors(text: str) -> list[str]:
    """Return ``name==floor`` for every requirement with a lower bound, those of the extras included."""
    project = tomllib.loads(text)["project"]
    extras = project["optional-dependencies"].values()
    listed = [*project["dependencies"], *(entry for extra in extras for entry in extra)]
    bounds = (re.match(r"([\w.-]+)(?:\[[^\]]*\])?>=([\w.]+)", entry) for entry in listed)
    return sorted({f"{bound[1]}=={bound[2]}" for bound in bounds if bound})


if __name__ == "__main__":
    sys.stdout.write("\n".join(floors(PROJECT.read_text())) + "\n")
