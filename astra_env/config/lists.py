"""Lists on command lines: ``[a, b]``, ``a,b``, ``a, b`` and ``a b`` mean the same in every script."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?(\s*/\s*\d+)?", re.IGNORECASE)


def spread(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return a command line in which every value of the options ``names`` is a word of its own, without commas."""
    spoken: list[str] = []
    inside = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if argument.startswith("--"):
            inside = name in names
            spoken += [name, *_words(value)] if inside and equals else [argument]
        else:
            spoken += _words(argument) if inside else [argument]
    return spoken


def gather(arguments: Sequence[str], schema: type) -> list[str]:
    """Return a command line in which every list of the dataclass ``schema`` is one value in brackets.

    The words that follow an option belong to its list while they look like its first one: numbers after a number, bare
    words after a bare word. What lies on the disk, or is written as a path, is none.
    """
    names = list_options(schema)
    waiting, gathered = list(arguments), []
    while waiting:
        argument = waiting.pop(0)
        name, equals, value = argument.partition("=")
        if name not in names or not (equals or (waiting and not waiting[0].startswith("--"))):
            gathered.append(argument)
            continue
        text = value if equals else waiting.pop(0)
        while waiting and not _is_closed(text) and (text.endswith(",") or _continues(text, waiting[0])):
            text = f"{text}, {waiting.pop(0)}"
        gathered.append(f"{name}={_bracketed(text)}")
    return gathered


def list_options(schema: type, prefix: str = "--") -> set[str]:
    """Return the options of a dataclass whose values are lists or tuples."""
    found: set[str] = set()
    for name, hint in get_type_hints(schema).items():
        if dataclasses.is_dataclass(hint):
            found |= list_options(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif any(get_origin(part) in (list, tuple) for part in (hint, *get_args(hint))):
            found.add(f"{prefix}{name}")
    return found


def _is_closed(text: str) -> bool:
    return text.startswith("[") and text.rstrip().endswith("]")


def _continues(text: str, word: str) -> bool:
    """Whether ``word`` is another entry of the list that ``text`` begins."""
    if text.startswith("["):
        return True
    if word.startswith("--"):
        return False
    if _NUMBER.fullmatch(_words(text)[-1] if _words(text) else ""):
        return _NUMBER.fullmatch(word.rstrip(",")) is not None
    return re.fullmatch(r"[A-Za-z_]\w*,?", word) is not None and not Path(word).exists()


def _words(text: str) -> list[str]:
    """Return the entries of a list of plain words and numbers, quotes and brackets taken off."""
    inner = text.strip()
    inner = inner[1:-1] if _is_closed(inner) else inner
    inner = re.sub(r"\s*/\s*", "/", inner) if "," in inner or "/" in inner else inner
    return [word.strip("'\"") for word in re.split(r"[,\s]+", inner.strip("[] ")) if word]


def _bracketed(text: str) -> str:
    """Return a list as the parser reads it; one that is written so already stays as it is."""
    if text == "null" or (_is_closed(text) and ("," in text or " " not in text.strip("[] "))):
        return text
    return f"[{', '.join(_entry(word) for word in _words(text))}]"


def _entry(word: str) -> str:
    return word if re.fullmatch(r"[-+\w./]+", word) else json.dumps(word)
