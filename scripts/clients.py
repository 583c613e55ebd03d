"""Run the conformance tests of the clients that are installed here, and write what passed into docs/clients.md.

A client that is not installed keeps the row of its last run, or is shown as not run. `make clients` calls this in
environments of their own.
"""

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "clients.md"
BEGIN, END = "<!-- matrix: written by scripts/clients.py -->\n", "<!-- end of the matrix -->"
CLIENTS = {
    "Gymnasium": ("gymnasium", r"test_gymnasium"),
    "Stable-Baselines3": ("stable_baselines3", r"dummy_vec_env|over_two_ends\[ppo"),
    "sb3-contrib": ("sb3_contrib", r"over_two_ends\[recurrent_ppo"),
    "Optuna": ("optuna", r"optuna"),
    "CleanRL-style file": ("torch", r"cleanrl"),
    "TorchRL": ("torchrl", r"torchrl"),
    "skrl": ("skrl", r"skrl"),
    "Tianshou": ("tianshou", r"tianshou"),
    "Minari": ("minari", r"minari"),
    "OmegaConf": ("omegaconf", r"omegaconf"),
    "RLlib": ("ray", r"rllib"),
    "SBX": ("sbx-rl", r"sbx"),
    "PufferLib": ("pufferlib-core", r"pufferlib"),
}
"""Name of a client: its distribution, and the pattern of its tests' names."""


def outcomes() -> dict[str, str]:
    """Run the tests; returns "passed", "failed" or "skipped" by the name of each."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "tests/clients", "-q", f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, check=False, stdout=sys.stderr)
        cases = list(ET.parse(report).iter("testcase"))
    found = {}
    for case in cases:
        kinds = {child.tag for child in case}
        kind = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found[f"{case.get('classname')}.{case.get('name')}"] = kind
    return found


def main() -> int:
    """Write the table; the exit status tells whether anything failed."""
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    table, after = rest.split(END)
    rows = {line.split("|")[1].strip(): line for line in table.splitlines()[2:]}
    found = outcomes()
    for name, (distribution, pattern) in CLIENTS.items():
        kinds = [kind for test, kind in found.items() if re.search(pattern, test) and kind != "skipped"]
        if kinds:
            failed = kinds.count("failed")
            told = f"{len(kinds) - failed} passed" + (f", **{failed} failed**" if failed else "")
            rows[name] = f"| {name} | {version(distribution)} | {told} |"
        else:
            rows.setdefault(name, f"| {name} | | not run |")
    lines = ["| client | version | tests |", "|---|---|---|", *(rows[name] for name in CLIENTS)]
    PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + after)
    return 1 if "failed" in found.values() else 0


if __name__ == "__main__":
    sys.exit(main())
