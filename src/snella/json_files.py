"""JSON files read as what they must be: a fault names the file, the key, what is expected and what is there.

What is expected is a type hint: str, int, float (finite), bool, None, Any, X | Y, Literal, Annotated[X, From(low)],
list[X], tuple[X, ...], dict[str, X], a dataclass (its fields), or a `Record` (needed and optional keys).
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from snella.errors import UserError, cut, short_reason

LONGEST_INT = 2**63  # what a tensor, and most other programs, can hold
SHOWN = 40  # characters of a value that a message shows
WORDS = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false", type(None): "null"}


@dataclass(frozen=True)
class From:
    """The least value of an annotated number."""

    low: float


@dataclass(frozen=True)
class Record:
    """What an object holds: the hints of its keys; `others` is that of keys which are not named."""

    needed: Mapping[str, Any]
    optional: Mapping[str, Any] = field(default_factory=dict)
    others: Any = Any


Count = Annotated[int, From(0)]


class _Wrong(Exception):  # noqa: N818 (becomes a UserError that names the file)
    """A value is not what it must be."""


class RepeatedKeyError(ValueError):
    """An object of JSON has one key twice."""


def load_json(text: str, *, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """Return what a text of JSON holds, as `json.loads` does.

    Raises:
        ValueError: not JSON, too deep, or (RepeatedKeyError) a key twice, of which json would take the last value.
    """
    try:
        return json.loads(text, parse_constant=parse_constant, object_pairs_hook=_unrepeated)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise RepeatedKeyError(f"{_inside('', name)} is there twice")
        found[name] = value
    return found


def read_json(path: Path, hint: Any, *, remedy: str) -> Any:
    """Return what a JSON file holds; NaN and infinity, which JSON does not have, are read as null.

    Raises:
        UserError: it cannot be read, or is not what the hint says; one line that ends with the remedy.
    """
    return parse_json(_text(path, remedy), hint, str(path), remedy=remedy)


def read_rows(
    path: Path, hint: Any, *, remedy: str, fault: Callable[[Any], str | None] | None = None
) -> list[dict[str, Any]]:
    """Return the rows of a .jsonl file, none where there is no file; `fault` says what is wrong with a row besides.

    Raises:
        UserError: as `read_json`, with the number of the line.
    """
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(_text(path, remedy).split("\n"), start=1):
        if line:
            where = f"{path}, line {number}"
            rows.append(parse_json(line, hint, where, remedy=remedy))
            if fault is not None and (wrong := fault(rows[-1])):
                raise UserError(f"{where}: {wrong}; {remedy}")
    return rows


def parse_json(text: str, hint: Any, where: str, *, remedy: str) -> Any:
    """Return what a text of JSON holds, as `read_json` does; `where` is what the message calls it."""
    try:
        value = load_json(text, parse_constant=lambda _: None)
        _check(value, hint, "")
    except (_Wrong, RepeatedKeyError) as wrong:
        raise UserError(f"{where}: {wrong}; {remedy}") from None
    except ValueError as error:
        raise UserError(f"{where} is damaged ({short_reason(error)}); {remedy}") from None
    return value


def without_nan(value: Any) -> Any:
    """Put None in the place of each NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(path: Path, remedy: str) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({short_reason(error)}); {remedy}") from None


def _check(value: Any, hint: Any, key: str) -> None:
    """Raise `_Wrong` where a value is not what the hint says; `key` is its place in the file."""
    if not _fits_here(value, hint):
        raise _Wrong(f"{key or 'the whole'} is {_shown(value)}, and should be {expected(hint)}")
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(hint, Record):
        _check_record(value, hint, key)
    elif is_dataclass(hint):
        _check_record(value, _record_of(hint), key)
    elif origin in (Union, types.UnionType):
        _check_alternatives(value, inner, key)
    elif origin is Annotated:
        _check(value, inner[0], key)
    elif origin is dict:
        for name, item in value.items():
            _check(item, inner[1], _inside(key, name))
    elif origin in (list, tuple, set):
        each = inner if origin is tuple and inner[-1] is not ... else (inner[0],) * len(value)
        for index, (item, own) in enumerate(zip(value, each, strict=True)):
            _check(item, own, f"{key}[{index}]")


def _check_alternatives(value: Any, hints: tuple[Any, ...], key: str) -> None:
    """Check a value against the only alternative of its kind, or find one of several that it is."""
    possible = [hint for hint in hints if _fits_here(value, hint)]
    for hint in possible[:-1]:
        try:
            return _check(value, hint, key)
        except _Wrong:
            continue
    return _check(value, possible[-1], key)


def _check_record(value: dict[str, Any], record: Record, key: str) -> None:
    if missing := [name for name in record.needed if name not in value]:
        raise _Wrong(f"{_inside(key, missing[0])} is missing, and should be {expected(record.needed[missing[0]])}")
    known = {**record.optional, **record.needed}
    for name, item in value.items():
        if name not in known and record.others is None:
            raise _Wrong(f"{_inside(key, name)} is there, and should not be: {_shown(item)}")
        _check(item, known.get(name, record.others), _inside(key, name))


@lru_cache
def _record_of(hint: type) -> Record:
    """Return the keys of a dataclass: those without a default are needed, and there are no others."""
    hints = get_type_hints(hint, include_extras=True)
    needed = {p.name for p in fields(hint) if p.default is MISSING and p.default_factory is MISSING}
    by_name = {part.name: hints[part.name] for part in fields(hint)}
    return Record(
        {name: own for name, own in by_name.items() if name in needed},
        {name: own for name, own in by_name.items() if name not in needed},
        others=None,
    )


def _fits_here(value: Any, hint: Any) -> bool:
    """Return whether a value is of the hint's kind, whatever stands inside it."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is None:
        hint = type(None)
    if origin in (Union, types.UnionType):
        return any(_fits_here(value, part) for part in inner)
    if origin is Annotated:
        return _fits_here(value, inner[0]) and all(value >= part.low for part in inner[1:] if isinstance(part, From))
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if origin is tuple and inner[-1] is not ...:
        return isinstance(value, list) and len(value) == len(inner)
    if origin in (list, tuple, set):
        return isinstance(value, list)
    if origin is dict or isinstance(hint, Record) or is_dataclass(hint):
        return isinstance(value, dict)
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (abs(value) < LONGEST_INT if isinstance(value, int) else math.isfinite(value))
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LONGEST_INT
    return isinstance(value, hint) if hint in (str, bool, type(None), list, dict) else True


def expected(hint: Any) -> str:
    """Return in words what a hint expects."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(expected(part) for part in inner)
    if origin is Annotated:
        return " ".join(
            [expected(inner[0]), *(f"from {part.low:g} up" for part in inner[1:] if isinstance(part, From))]
        )
    if origin is Literal:
        return " or ".join(json.dumps(choice) for choice in inner)
    if origin is tuple and inner[-1] is not ...:
        return f"a list of {len(inner)}"
    if origin in (list, tuple, set) or hint is list:
        return "a list"
    if origin is dict or hint is dict or isinstance(hint, Record) or is_dataclass(hint):
        return "an object"
    return WORDS.get(type(None) if hint is None else hint, "another value")


def _inside(key: str, name: str) -> str:
    name = cut(name if name.isprintable() else ascii(name), SHOWN)
    return f"{key}.{name}" if key else name


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = json.dumps(value, ensure_ascii=True) if not isinstance(value, int) or abs(value) < LONGEST_INT else "huge"
    return cut(text, SHOWN)
