"""Errors that a user can cause, and what other errors say in a line."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence

LONGEST = 200  # characters of a reason
# what libraries advise to switch off, so that a file may run code, which nobody here does -> what is said instead
UNSAFE = {
    "weights_only": "it holds Python objects besides tensors; save the model's state_dict() alone",
    "trust_remote_code": "it needs code of its own, which is not run",
}
SHOWN = 60  # characters of a value
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


# errors of the system that have a remedy of their own
REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space or write elsewhere",
    errno.EDQUOT: "the disk quota is used up; free some space or write elsewhere",
    errno.EFBIG: "the file is larger than allowed here; raise the limit (ulimit -f) or write elsewhere",
    errno.EROFS: "the file system is read-only; write elsewhere",
    errno.EACCES: "no permission; check the path or write elsewhere",
    errno.EPERM: "no permission; check the path or write elsewhere",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n 4096) or lower --workers",
    errno.ENFILE: "too many open files on this machine; close some, or lower --workers",
    errno.ENOMEM: "out of memory; close other programs, lower --workers or --batch-size",
}


def error_number(error: BaseException) -> int:
    """Return the system's number of an error, also in a library's words ("os error 28"); 0 where there is none."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else 0


def short_reason(error: BaseException) -> str:
    """Return what an error says, in one line: the system's own words where it comes from there."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    for word, instead in UNSAFE.items():
        if word in text:
            return instead
    return cut(text, LONGEST)


def cut(text: str, most: int) -> str:
    """Return text of so many characters at most, with an ellipsis where it is longer."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def brief(value: object) -> str:
    """Return a value as a message shows it: in a few characters, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 200:  # Python refuses to write thousands of digits
        return f"a number of {value.bit_length()} bits"
    return cut(repr(value), SHOWN)


def named(value: object) -> str:
    """Return a key or a name as a message has it: as it is where it is short text, else as `brief` does."""
    return value if isinstance(value, str) and value.isprintable() and len(value) <= SHOWN else brief(value)


def listed(names: Sequence[str], limit: int = 3) -> str:
    """Return the first names as a list in words.

    >>> listed(["a", "b", "c", "d"])
    'a, b, c, ...'
    """
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun.

    >>> counted(1, "image"), counted(2, "class", "classes")
    ('1 image', '2 classes')
    """
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
