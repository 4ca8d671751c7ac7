"""How a command ends: stopped by a signal or by an error, in a line that says what to do, with an exit code.

0: done; 1: done, but for images that could not be read or runs of a comparison that failed, or a fault in snella;
2: something given is wrong;
130, 143, 129: stopped by Ctrl-C, by SIGTERM, by SIGHUP.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from snella.errors import UserError, printable, short_reason


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived, or SIGHUP: the terminal is gone."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


class Stopped(Exception):  # noqa: N818 (not an error)
    """A command was stopped by Ctrl-C or a signal; `go_on` is the command that goes on."""

    def __init__(self, code: int, go_on: str) -> None:
        super().__init__(go_on)
        self.code = code
        self.go_on = go_on


def exit_code(stop: BaseException) -> int:
    """Return the exit code that a shell gives a program ended by what asked for the stop: `stop.signal_number`.

    A plain KeyboardInterrupt has none: it is Ctrl-C.
    """
    return 128 + getattr(stop, "signal_number", signal.SIGINT)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does: with files closed and a line that says how to go on.

    SIGHUP stays ignored where it is, as under nohup.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Terminated(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows lacks SIGHUP
    previous = {n: signal.signal(n, stop) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def again(args: Sequence[str]) -> str:
    """Return the command line, to be typed once more."""
    return shlex.join(["snella", *args])


_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space or write elsewhere",
    errno.EROFS: "the file system is read-only; write elsewhere",
    errno.EACCES: "no permission; check the path or write elsewhere",
    errno.EPERM: "no permission; check the path or write elsewhere",
}


def explain(error: BaseException, args: Sequence[str], *, debug: bool) -> int:
    """Print what went wrong and return the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0
    if isinstance(error, Stopped):
        return _say(f"stopped; this goes on: {error.go_on}", error.code)
    if isinstance(error, KeyboardInterrupt):
        return _say(f"stopped; this starts again: {again(args)}", exit_code(error))
    if isinstance(error, UserError):
        return _say(str(error), 2)
    if isinstance(error, BrokenPipeError):  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError):
        reason = _REMEDIES.get(error.errno or 0) or error.strerror or str(error)
        return _say(f"{error.filename}: {reason}" if error.filename else reason, 2)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _say("out of memory; try a smaller --batch-size, with --accumulate, or a smaller --image-size", 2)
    where = "" if debug else " (--debug shows where)"
    return _say(f"fault in snella: {type(error).__name__}: {short_reason(error)}{where}", 1)


def _say(message: str, code: int) -> int:
    print(f"snella: {printable(message)}", file=sys.stderr)
    return code
