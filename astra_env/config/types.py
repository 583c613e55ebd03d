"""What a field's type says of its values, so that the help shows it and nobody checks it by hand."""

import re
import types
import typing
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from jsonargparse.typing import restricted_number_type

if TYPE_CHECKING:
    PositiveInt: TypeAlias = int
    NonNegativeInt: TypeAlias = int
    IntFrom2: TypeAlias = int
    Finite: TypeAlias = float
    PositiveFinite: TypeAlias = float
    NonNegativeFinite: TypeAlias = float
    PositiveShare: TypeAlias = float
    ClosedUnitInterval: TypeAlias = float
else:
    from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt

    _FINITE = ("<", float("inf"))
    IntFrom2 = restricted_number_type("IntFrom2", int, (">=", 2))
    Finite = restricted_number_type("Finite", float, [(">", -float("inf")), _FINITE])
    PositiveFinite = restricted_number_type("PositiveFinite", float, [(">", 0), _FINITE])
    NonNegativeFinite = restricted_number_type("NonNegativeFinite", float, [(">=", 0), _FINITE])
    PositiveShare = restricted_number_type("PositiveShare", float, [(">", 0), ("<=", 1)])

_WORDS: dict[Any, str] = {
    PositiveInt: "an integer >= 1",
    NonNegativeInt: "an integer >= 0",
    IntFrom2: "an integer >= 2",
    Finite: "a finite number",
    PositiveFinite: "a finite number > 0",
    NonNegativeFinite: "a finite number >= 0",
    PositiveShare: "a number above 0 and at most 1",
    ClosedUnitInterval: "a number in [0, 1]",
    **{plain: plain.__name__ for plain in (bool, int, float, str)},
}
_COMPLAINT = re.compile(r'Parser key "(?P<key>[^"]+)": (?P<what>Expected an? .*[.] Got|Not of type|Does not val)')
_VALUES = (r"(?:Got|Given) value: (.*)$", r": (\S+) (?:does not conform|not an integer)", r": ('.*')$")


def complaint(message: str, schema: type | None) -> str:
    """Return a message of jsonargparse on one line; as ``field: expected ..., got ...`` where the field's type says so.

    Args:
        message: of an error of a parser.
        schema: the dataclass that the parser was built for.
    """
    line = " ".join(message.split())
    found = _COMPLAINT.match(line)
    value = next((match[1] for pattern in _VALUES if (match := re.search(pattern, line))), None)
    if found is None or value is None or schema is None:
        return line
    hint = _hint(schema, found["key"].split("."))
    items = get_origin(hint) in (list, tuple) and found["what"].startswith(("Expected a typing.Lit", "Not of type"))
    hint = get_args(hint)[0] if items else hint
    expected = _expected(hint)
    if expected is None:
        return line
    return f"{found['key']}: expected {expected}, got {_quoted(value) if expected.startswith('one of') else value}"


def bare(value: Any) -> Any:
    """Return a value whose numbers are Python's own, which YAML and checkpoints can hold, not of a type from here."""
    if isinstance(value, list | tuple):
        return type(value)(bare(entry) for entry in value)
    for plain in (int, float):
        if isinstance(value, plain) and not isinstance(value, bool):
            return plain(value)
    return value


def _hint(schema: Any, names: list[str]) -> Any:
    for name in names:
        schema = get_type_hints(schema).get(name) if isinstance(schema, type) else None
    return schema


def _expected(hint: Any) -> str | None:
    """Return what a value of a type is, in words; None where the type says too little."""
    if get_origin(hint) in (types.UnionType, typing.Union):
        known = [_expected(part) for part in get_args(hint) if part is not type(None)]
        return known[0] if len(known) == 1 else None
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    try:
        return _WORDS.get(hint)
    except TypeError:
        return None


def _quoted(value: str) -> str:
    return value if value[:1] in "'\"" else repr(value)
