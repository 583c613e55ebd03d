"""Who may know whom: the rooms of the house, read from the imports themselves."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BELOW_ENVS = (
    "strategy", "losses", "rewards", "attacks", "augment", "data", "models", "optim", "objectives", "learner",
    "learners", "config", "configuration", "checkpoint", "run_directory", "trainer", "interaction", "protocols",
    "report", "evaluation", "plotting", "seeding", "devices", "errors", "registry", "interrupts", "strategy_counts",
    "building", "distributed",
)  # fmt: skip
LEVELS = [
    {"errors", "registry", "seeding", "devices", "interrupts", "checkpoint"},
    {"strategy", "losses", "optim", "config", "configuration", "clustering"},
    {"run_directory", "distributed"},
    {"attacks", "augment", "models", "data", "rewards", "objectives", "building", "report", "protocols"},
    {"learner", "learners", "interaction", "strategy_counts"},
    {"evaluation", "envs"},
]


def modules(*packages):
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def roots(path):
    return {name.partition(".")[0] for name in imports(path)}


def room(path):
    return path.relative_to(ROOT / "astra_env").parts[0].removesuffix(".py")


def test_packages_know_only_what_stands_below_them():
    for path in modules("astra_env"):
        assert not roots(path) & {"agents", "rpat", "scripts"}, path
    for path in modules("agents"):
        assert not roots(path) & {"rpat", "scripts"}, path
    for path in modules("rpat"):
        assert not roots(path) & {"agents", "scripts"}, path


def test_gymnasium_stays_in_the_environments():
    for path in modules("astra_env"):
        if room(path) in BELOW_ENVS:
            assert "gymnasium" not in roots(path), path


def test_stable_baselines3_stays_in_its_room():
    for path in modules("astra_env", "agents", "rpat"):
        if not path.is_relative_to(ROOT / "agents" / "sb3"):
            assert not roots(path) & {"stable_baselines3", "sb3_contrib"}, path


def test_matplotlib_stays_in_plotting():
    for path in modules("astra_env", "agents", "rpat", "scripts"):
        if not path.is_relative_to(ROOT / "astra_env" / "plotting"):
            assert "matplotlib" not in roots(path), path


def test_lower_levels_do_not_import_higher_ones():
    level_of = {name: index for index, names in enumerate(LEVELS) for name in names}
    for path in modules("astra_env"):
        if room(path) not in level_of:
            continue
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "astra_env" and len(parts) > 1 and parts[1] in level_of:
                assert level_of[parts[1]] <= level_of[room(path)], f"{path} imports {name}"


@pytest.mark.parametrize("package", ["astra_env", "agents", "rpat"])
def test_importing_a_package_does_not_import_its_heavy_friends(package):
    code = (
        f"import sys, {package}; heavy = {{'torchvision', 'matplotlib', 'stable_baselines3', 'sklearn'}};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert output.strip() == "[]"
