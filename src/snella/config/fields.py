"""How a setting is written: its type, default, range and readers stand at the field, once.

    lr: float = setting(1e-3, above(0))
    \"\"\"Peak learning rate. 1e-3 as published.\"\"\"

Flags, recipes, checks and help are made from these fields. A setting's flat name, its flag and its key in a recipe, is
the field's own unless it says another. This module imports nothing heavy.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import lru_cache
from typing import Any, Literal, TypeVar, get_type_hints

from snella.errors import UserError, brief

LONGEST_NUMBER = 100  # characters

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Interval:
    """The numbers from `low` to `high`; whether the ends belong to them."""

    low: float
    high: float
    with_low: bool
    with_high: bool

    def __contains__(self, value: float) -> bool:
        above = self.low <= value if self.with_low else self.low < value
        return above and (value <= self.high if self.with_high else value < self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"the numbers from {self.low} up" if self.with_low else f"the numbers above {self.low}"
        return f"{'[' if self.with_low else '('}{self.low}, {self.high}{']' if self.with_high else ')'}"


def at_least(low: float) -> Interval:
    """Return the finite numbers from `low` up."""
    return Interval(low, math.inf, True, False)


def above(low: float) -> Interval:
    """Return the finite numbers above `low`."""
    return Interval(low, math.inf, False, False)


def finite() -> Interval:
    """Return all finite numbers."""
    return above(-math.inf)


def between(low: float, high: float) -> Interval:
    """Return the numbers from `low` to `high`, both included."""
    return Interval(low, high, True, True)


def from_below(low: float, high: float) -> Interval:
    """Return the numbers from `low` to below `high`."""
    return Interval(low, high, True, False)


def inside(low: float, high: float) -> Interval:
    """Return the numbers above `low` and below `high`."""
    return Interval(low, high, False, False)


@dataclass(frozen=True)
class Reading:
    """Who reads a setting, and what it may be."""

    interval: Interval | None = None
    flag_name: str | None = None  # where it is not the field's own
    choices: Mapping[str, object] | None = None  # a table whose keys it chooses from
    tasks: tuple[str, ...] = ()  # () for all
    methods: tuple[str, ...] = ()  # () for all
    free: bool = False  # does not change what a run computes, so a resumed run may have another
    start: bool = False  # how a run is started, not what it is: kept out of recipes and of config.yaml


def setting(
    default: Any,
    interval: Interval | None = None,
    *,
    flag_name: str | None = None,
    choices: Mapping[str, object] | None = None,
    tasks: tuple[str, ...] = (),
    methods: tuple[str, ...] = (),
    free: bool = False,
    start: bool = False,
) -> Any:
    """Return the dataclass field of a setting; the arguments are those of `Reading`."""
    reading = Reading(interval, flag_name, choices, tasks, methods, free, start)
    return field(default=default, metadata={"reading": reading})


@dataclass(frozen=True)
class Setting:
    """A setting as flags and recipes have it."""

    name: str
    section: str | None  # the field of the whole config that holds it; None: the config itself does
    attribute: str  # its name there
    default: Any
    annotation: Any
    reading: Reading

    @property
    def hint(self) -> Any:
        """Return the type; of a choice from a table, a Literal of its keys as they are now."""
        choices = self.reading.choices
        return self.annotation if choices is None else Literal[tuple(choices)]


@lru_cache
def settings_of(config_class: type) -> dict[str, Setting]:
    """Return the settings of a config class and of the sections in it, by flat name."""
    return {found.name: found for found in _settings(config_class)}


def _settings(config_class: type) -> Iterator[Setting]:
    hints = _hints(config_class)
    for part in fields(config_class):
        if "reading" in part.metadata:
            yield _setting(part, hints[part.name], None)
            continue
        section = hints[part.name]
        for own in fields(section):
            yield _setting(own, _hints(section)[own.name], part.name)


def _setting(part: Field[Any], hint: Any, section: str | None) -> Setting:
    reading: Reading = part.metadata["reading"]
    return Setting(reading.flag_name or part.name, section, part.name, part.default, hint, reading)


@lru_cache
def _hints(config_class: type) -> dict[str, Any]:
    return get_type_hints(config_class)


@lru_cache
def descriptions(config_class: type) -> dict[str, str]:
    """Return the texts that stand below the fields of a class, by field."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body
    assert isinstance(body, ast.ClassDef)
    return {
        statement.target.id: inspect.cleandoc(text.value.value)
        for statement, text in zip(body.body, body.body[1:], strict=False)
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def nearest(name: str, names: Iterable[str]) -> str:
    """Return '; did you mean NAME?' for the nearest of the names, or '' if none is near."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def flag(name: str) -> str:
    """Return the flag of a setting: `batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


_DIGITS = {int: r"[-+]?[0-9]+", float: r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|[-+]?(nan|inf|infinity)"}


def read_number(text: str, kind: type[Number]) -> Number:
    """Return the number that a text is, in ASCII digits without "_", with spaces around at most; -0.0 is 0.0.

    Python reads more: the digits of every script, and 1_0 for 10.

    Raises:
        ValueError: not such a number; the message says so.
    """
    word = text.strip(" \t\r\n")
    if not re.fullmatch(_DIGITS[kind], word.lower()) or len(word) > LONGEST_NUMBER:
        raise ValueError(f"{brief(text)} is not a {'whole ' if kind is int else ''}number written in plain digits")
    return kind(word) + kind(0)


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def read_bytes(text: str) -> int:
    """Return the bytes that a size stands for: 6GB and 6G are 6 · 10^9, 6GiB is 6 · 2^30.

    Raises:
        ValueError: not a size above 0.
    """
    found = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+) ?([kmgt]?i?)b?", text.strip().lower())
    size = round(float(found[1]) * _UNITS[found[2]]) if found and found[2] in _UNITS else 0
    if not size:
        raise ValueError(f"{text} is not a size such as 6GB or 800MiB")
    return size


def check_intervals(section: object) -> None:
    """Refuse a value outside its setting's interval. Raises UserError, which names the flag and the interval."""
    for part in fields(section):  # pyright: ignore[reportArgumentType] (a dataclass)
        reading: Reading | None = part.metadata.get("reading")
        value = getattr(section, part.name)
        if reading is None or reading.interval is None or value is None:
            continue
        if not isinstance(value, str) and value not in reading.interval:
            raise UserError(f"{flag(reading.flag_name or part.name)} {value} is outside {reading.interval}")
