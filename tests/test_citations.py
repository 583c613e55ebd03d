"""What the repository cites is in the repository, or published."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("astra_env", "agents", "rpat", "scripts", "tests", "benchmarks", "docs")
SUFFIXES = {".py", ".md", ".yaml", ".toml"}
ELSEWHERE = re.compile(r"\bDESIGN(?:\.md)?[ ]section|\.\./(?:shared|golden)")
PAGE = re.compile(r"\bdocs/[\w/.-]+\.md\b")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)[^)]*\)")


def texts():
    inside = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES]
    beside = [path for path in sorted(ROOT.iterdir()) if path.suffix in SUFFIXES or path.name == "Makefile"]
    return {path: path.read_text() for path in inside + beside if path != Path(__file__).resolve()}


def test_nothing_cites_a_page_outside_the_repository():
    found = [f"{path.relative_to(ROOT)}: {hit}" for path, text in texts().items() for hit in ELSEWHERE.findall(text)]
    assert not found


def test_pages_of_the_documentation_that_are_named_exist():
    found = [
        f"{path.relative_to(ROOT)}: {page}"
        for path, text in texts().items()
        for page in PAGE.findall(text)
        if not (ROOT / page).exists()
    ]
    assert not found


def test_relative_links_lead_somewhere():
    found = [
        f"{path.relative_to(ROOT)}: {link}"
        for path, text in texts().items()
        if path.suffix == ".md"
        for link in LINK.findall(text)
        if not (path.parent / link).exists()
    ]
    assert not found
