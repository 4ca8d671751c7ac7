"""Errors that a user can cause, and what other errors say in a line."""

from __future__ import annotations

LONGEST = 200  # characters of a reason


class UserError(ValueError):
    """Something the user gave is at fault. The message is one line: it names the thing and the remedy.

    The command line prints the message without a traceback and exits with code 2.
    """


def short_reason(error: BaseException) -> str:
    """Return what an error says, in one line: the system's own words where it comes from there."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
