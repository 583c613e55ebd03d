"""Who may know whom: the rooms are read from the tree, what they know from their imports."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("astra_env", "agents", "rpat")
LEVELS = [
    {"errors"},
    {"registry", "registration", "randomness", "compute", "modes", "storage", "config", "strategy"},
    {"losses", "optim", "distributed", "augment"},
    {"rewards", "models", "data"},
    {"attacks"},
    {"objectives"},
    {"learner"},
    {"export", "plotting"},
    {"evaluation"},
    {"training", "envs"},
    {"commands"},
]
"""The rooms of ``astra_env`` from the ground up: each knows its own level and those below."""
ALLOWED = {"agents": {"astra_env"}, "rpat": {"astra_env"}, "astra_env": set()}
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
LONGEST = 350
"""Lines of a file."""


def modules(*packages):
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path):
    """Every dotted name that a file imports, in functions and under TYPE_CHECKING too."""
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


def rooms():
    entries = (ROOT / "astra_env").iterdir()
    return {
        entry.stem
        for entry in entries
        if (entry.suffix == ".py" and entry.stem != "__init__") or (entry.is_dir() and any(entry.glob("*.py")))
    }


def test_every_room_of_the_tree_has_its_level_and_no_level_names_a_room_that_is_gone():
    assert rooms() == set(LEVEL_OF)


def test_rooms_know_only_their_own_level_and_those_below():
    wrong = []
    for path in modules("astra_env"):
        if path == ROOT / "astra_env" / "__init__.py":
            continue
        for name in imports(path):
            parts = name.split(".")
            known = parts[1] if parts[0] == "astra_env" and len(parts) > 1 else None
            if known in LEVEL_OF and LEVEL_OF[known] > LEVEL_OF[room(path)]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, wrong


def test_packages_know_only_what_stands_below_them():
    for package, allowed in ALLOWED.items():
        for path in modules(package):
            if path.is_relative_to(ROOT / "astra_env" / "commands"):
                continue  # the top floor
            others = {*PACKAGES, "scripts", "benchmarking"} - {package} - allowed
            assert not roots(path) & others, path


def test_nothing_but_the_fronts_imports_the_commands():
    for path in modules(*PACKAGES):
        if not path.is_relative_to(ROOT / "astra_env" / "commands"):
            assert not any(name.startswith("astra_env.commands") for name in imports(path)), path


def test_there_is_no_circle_of_imports():
    """Not in functions and not under TYPE_CHECKING either: one module of a circle cannot be understood by itself."""
    paths = {}
    for path in modules(*PACKAGES):
        parts = path.relative_to(ROOT).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    known = {name: {other for other in imports(path) if other in paths} - {name} for name, path in paths.items()}
    reached = defaultdict(set)
    for start in paths:
        waiting = list(known[start])
        while waiting:
            name = waiting.pop()
            if name not in reached[start]:
                reached[start].add(name)
                waiting.extend(known[name])
    assert [name for name in paths if name in reached[name]] == []


def test_no_file_has_more_jobs_than_one():
    lengths = {str(path): len(path.read_text().splitlines()) for path in modules(*PACKAGES, "scripts")}
    assert not {path: lines for path, lines in lengths.items() if lines > LONGEST}


def test_gymnasium_stays_in_the_environments():
    for path in modules("astra_env"):
        if room(path) not in ("envs", "registration", "commands"):
            assert "gymnasium" not in roots(path), path


def test_stable_baselines3_stays_in_its_room():
    for path in modules(*PACKAGES):
        if not path.is_relative_to(ROOT / "agents" / "sb3"):
            assert not roots(path) & {"stable_baselines3", "sb3_contrib"}, path


def test_matplotlib_stays_in_plotting():
    for path in modules(*PACKAGES, "scripts"):
        if not path.is_relative_to(ROOT / "astra_env" / "plotting"):
            assert "matplotlib" not in roots(path), path


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_does_not_import_its_heavy_friends(package):
    code = (
        f"import sys, {package}; heavy = {{'torchvision', 'matplotlib', 'stable_baselines3', 'sklearn'}};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert output.strip() == "[]"
