"""Flags of a command: unknown ones and wrong values become a line that names the nearest right ones."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import FlagCreatePairsOff

from snella.config.fields import flag, nearest, read_number
from snella.config.validation import choice_error
from snella.errors import UserError

C = TypeVar("C")
SWITCHES = ("--quiet", "--json", "--debug")  # of any command
# a command of its own form of JSON, which is one of its flags
WITH_OWN_JSON = ("predict",)


def value_of(args: Sequence[str], name: str) -> str | None:
    """Return the last value of a flag on the command line, before it is parsed."""
    value = None
    for word, following in zip_longest(args, args[1:]):
        if word == flag(name):
            value = following
        elif word.startswith(f"{flag(name)}="):
            value = word.partition("=")[2]
    return value


def switched(args: Sequence[str]) -> tuple[list[str], set[str]]:
    """Return the words of a command line without the switches of any command, and these."""
    own = {"--json"} if args and args[0] in WITH_OWN_JSON else set[str]()
    given = {word for word in args if word in SWITCHES and word not in own}
    return [word for word in args if word not in given], given


def parse_command(command: type[C], args: Sequence[str]) -> C:
    """Return the command that the flags describe, with its name and fields in the messages."""
    name = command.__name__.lower()
    check_flags(args, get_type_hints(command), name)
    return parse(command, args, name)


def divided(args: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the flags of these names with their values, one each, and all other words."""
    wanted = {flag(name) for name in names}
    chosen: list[str] = []
    others: list[str] = []
    has_value = False  # the word before may have this one for its value
    for word in args:
        given = "--" + word.partition("=")[0][2:].replace("_", "-") if word.startswith("--") else word
        ours = given in wanted or (has_value and not word.startswith("--"))
        (chosen if ours else others).append(word)
        has_value = given in wanted and "=" not in word
    return chosen, others


def parse(command: type[C], args: Sequence[str], name: str, *, negatable: bool = False, **default: C) -> C:
    """Parse the flags of a command; tyro's framed errors become a line.

    Args:
        name: the command's, as it is typed.
        negatable: whether --no-NAME turns a flag off.
    """
    framed = io.StringIO()
    try:
        with contextlib.redirect_stderr(framed):
            cli: Any = tyro.cli  # its overloads do not know a default beside a configuration
            pairs = () if negatable else (FlagCreatePairsOff,)
            return cli(command, args=args, prog=f"snella {name}", config=pairs, **default)
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(f"{_first_paragraph(framed.getvalue())} (see snella {name} --help)") from None


def check_flags(args: Sequence[str], hints: Mapping[str, Any], name: str, *, negatable: bool = False) -> None:
    """Refuse what tyro would refuse at more length, unknown flags and choices, and numbers that it would take.

    Args:
        hints: field -> type, of all fields that the command reads.
        name: the command's, as it is typed.
        negatable: whether --no-NAME turns a flag off.
    """
    flags = {flag(key): hint for key, hint in hints.items()} | {"--help": bool}
    negated = {f"--no-{key[2:]}" for key, hint in flags.items() if hint is bool and negatable}
    for i, word in enumerate(args):
        if not re.match(r"--[A-Za-z]", word):
            continue
        given, equals, value = word.partition("=")
        given = "--" + given[2:].replace("_", "-")
        if given not in flags and given not in negated:
            raise UserError(f"unknown flag {given}{nearest(given, [*flags, *negated])} (see snella {name} --help)")
        if not equals and i + 1 == len(args):
            continue
        value = value if equals else args[i + 1]
        choices = choices_of(flags.get(given))
        if choices and value not in choices:
            raise choice_error(given[2:], value, choices)
        _check_number(given, value, flags.get(given))


def _check_number(given: str, value: str, hint: Any) -> None:
    """Refuse a number that is not written in plain digits; tyro would take what Python takes. Raises UserError."""
    parts = get_args(hint) or (hint,)
    kind = next((kind for kind in (float, int) if kind in parts), None)
    words = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
    if kind is None or value in (*words, "None"):
        return
    try:
        read_number(value, kind)
    except ValueError as error:
        raise UserError(f"{given}: {error}") from None


def choices_of(hint: Any) -> tuple[str, ...]:
    """Return the values of a Literal, or of one that may be None (typed as such); () for other types."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    parts = [part for part in get_args(hint) if part is not type(None)]
    if not parts or not all(get_origin(part) is Literal for part in parts):  # a number, or auto
        return ()
    return (*get_args(parts[0]), "None") if type(None) in get_args(hint) else get_args(parts[0])


def _first_paragraph(framed: str) -> str:
    """Return the message in a framed error: what stands between its title and the first rule or empty line."""
    lines = [line.strip(" │|\t") for line in framed.splitlines()]
    message = []
    for line in lines[1:]:
        if not line.strip("─-╭╮╰╯"):
            if message:
                break
            continue
        message.append(line)
    return " ".join(message)
