"""Errors that a user can cause, and what other errors say in a line."""

from __future__ import annotations

import re

LONGEST = 200  # characters of a reason
LONGEST_LINE = 1_000  # of a message: a name may be a file's whole content

# what a terminal obeys or reorders, and the halves of characters that names in other encodings become
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(ValueError):
    """Something the user gave is at fault. The message is one line: it names the thing and the remedy.

    The command line prints the message without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Return text as one line of bounded length, cut in the middle: a remedy stands at its end."""
    line = text.replace("\n", "\\n")
    if len(line) <= LONGEST_LINE:
        return line
    half = (LONGEST_LINE - 5) // 2
    return f"{line[:half]} ... {line[-half:]}"


def printable(text: str) -> str:
    r"""Return text with control characters written out, as names of classes and files may hold any.

    >>> printable("\x1b[2Jcat")
    '\\x1b[2Jcat'
    """
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def short_reason(error: BaseException) -> str:
    """Return what an error says, in one line: the system's own words where it comes from there."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
