"""How a command ends: stopped by a signal or by an error, in a line that says what to do, with an exit code.

0: done; 1: done, but for images that could not be read or runs of a comparison that failed, or a fault in snella;
2: something given is wrong;
130, 143, 129: stopped by Ctrl-C, by SIGTERM, by SIGHUP.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from snella.distributed.environment import is_one_of_several
from snella.errors import REMEDIES, UserError, error_number, printable, short_reason
from snella.training.interrupt import ENDS_WITH_PARENT, leave_terminal


@dataclass(frozen=True)
class Found:
    """What a command came to: what --json prints of it, and the exit code."""

    values: Mapping[str, Any]
    code: int = 0


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived, or SIGHUP: the terminal is gone."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


class Stopped(Exception):  # noqa: N818 (not an error)
    """A command was stopped, by Ctrl-C or a signal unless `why` says another; `go_on` is the command that goes on."""

    def __init__(self, code: int, go_on: str, why: str = "stopped") -> None:
        super().__init__(go_on)
        self.code = code
        self.go_on = go_on
        self.why = why


def exit_code(stop: BaseException) -> int:
    """Return the exit code that a shell gives a program ended by what asked for the stop: `stop.signal_number`.

    A plain KeyboardInterrupt has none: it is Ctrl-C.
    """
    return 128 + getattr(stop, "signal_number", signal.SIGINT)


@contextlib.contextmanager
def terminable(args: Sequence[str]) -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does: with files closed and a line that says how to go on.

    While a module is loaded any of them ends the process at once: an exception there can leave a library half-made,
    which then aborts. SIGHUP stays ignored where it is, as under nohup.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT and number != signal.SIGTERM:
            leave_terminal()
        if _importing(frame):
            with contextlib.suppress(OSError):
                os.write(2, f"snella: stopped; this starts again: {again(args)}\n".encode(errors="replace"))
            os._exit(128 + number)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows lacks SIGHUP
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    previous = {n: signal.signal(n, stop) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _importing(frame: FrameType | None) -> bool:
    """Return whether a module is being loaded at this place."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def again(args: Sequence[str]) -> str:
    """Return the command line, to be typed once more."""
    return shlex.join(["snella", *args])


OUT_OF_MEMORY = "out of memory; try a smaller --batch-size, with --accumulate, or a smaller --image-size"
GONE = 129  # as a shell gives it for SIGHUP, which Windows does not have
# words in a library's error -> what is said
_TOLD = {
    "DataLoader worker": "a process that loads images was ended from outside, by the system where memory ran out; "
    "lower --workers (0 loads in the training's own process)",
    "Expected more than 1 value per channel when training": "a batch norm needs two images or more in each batch; "
    "raise --batch-size",
    "ancdata": REMEDIES[errno.EMFILE],
    "can't allocate memory": OUT_OF_MEMORY,
    "Too many open files": REMEDIES[errno.EMFILE],
}


def explain(error: BaseException, args: Sequence[str], *, debug: bool) -> int:
    """Print what went wrong and return the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0
    if isinstance(error, Stopped):
        return _say(f"{error.why}; this goes on: {error.go_on}", error.code)
    if isinstance(error, KeyboardInterrupt):
        return _say(f"stopped; this starts again: {again(args)}", exit_code(error))
    if isinstance(error, UserError):
        return _say(str(error), 2)
    if isinstance(error, BrokenPipeError):  # the reader of our output has gone, as with `| head`
        _to_nowhere(sys.stdout)
        return 1
    if isinstance(error, OSError) and error.errno == errno.EIO and not error.filename:  # printed to no terminal
        leave_terminal()
        return _say(f"the terminal is gone; this goes on or starts again: {again(args)}", GONE)
    if isinstance(error, OSError):
        reason = REMEDIES.get(error_number(error)) or error.strerror or str(error)
        return _say(f"{error.filename}: {reason}" if error.filename else reason, 2)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _say(OUT_OF_MEMORY, 2)
    if told := next((text for words, text in _TOLD.items() if words in str(error)), None):
        return _say(told, 2)
    where = "" if debug else " (--debug shows where)"
    return _say(f"fault in snella: {type(error).__name__}: {short_reason(error)}{where}", 1)


def _say(message: str, code: int) -> int:
    if is_one_of_several():
        from snella.distributed.world import is_first_to_say

        if not is_first_to_say():
            return code
    with contextlib.suppress(OSError, ValueError):  # where nobody reads it any more
        print(f"snella: {printable(message)}", file=sys.stderr, flush=True)
    return code


def ready_output() -> None:
    """Let nothing that is printed end a command: characters that the output lacks become ?, a closed one is nowhere."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for as long as the process)
        elif isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):  # one that is closed
                stream.reconfigure(errors="replace" if name == "stdout" else "backslashreplace")


def _to_nowhere(stream: Any) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def end_with_parent() -> None:
    """Have this process asked to stop, as by SIGTERM, when the one that started it has ended, however it did.

    A comparison starts its runs with a pipe for standard input that it never writes to; its end is the pipe's.
    """
    if os.environ.pop(ENDS_WITH_PARENT, None) is None:
        return

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1024):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
