"""How a training stops before its end: asked to by a signal, at a good moment, or because it has diverged.

The first Ctrl-C, SIGTERM or SIGHUP asks, the second one stops at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import threading
from pathlib import Path
from types import FrameType

from snella.distributed.environment import is_first_started
from snella.errors import UserError


class Interrupted(Exception):  # noqa: N818 — not an error
    """Training was asked to stop and did, after `step` optimiser steps.

    `checkpoint` is the folder to go on from, `signal_number` what asked: SIGINT, SIGTERM or SIGHUP.
    """

    def __init__(self, step: int, checkpoint: Path, signal_number: int) -> None:
        super().__init__(f"interrupted after step {step}; checkpoint {checkpoint}")
        self.step = step
        self.checkpoint = checkpoint
        self.signal_number = signal_number


ENDS_WITH_PARENT = "SNELLA_ENDS_WITH_PARENT"  # set for a process whose standard input is a pipe of its parent
DIVERGED = ("the loss is", "diverged:")  # how such a message begins


class Diverged(UserError):  # noqa: N818 (named as the other ends)
    """Training cannot go on: the loss or what is tuned is not finite. What was written before is as it was.

    Args:
        what: what is not finite, as the message begins.
        step: the optimiser step, from 1, at or after which that was found.
        rate: the learning rate of that step.
        remedy: what to do about it.
    """

    def __init__(self, what: str, step: int, rate: float, remedy: str) -> None:
        super().__init__(f"{what} at step {step} with learning rate {rate:.3g}; {remedy}")
        self.step = step
        self.rate = rate
        self.best_epoch = 0  # the best one before, from 1; 0: there is none


def leave_terminal() -> None:
    """Send what is printed from now on nowhere where it went to a terminal, which is gone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if stat.S_ISCHR(os.fstat(stream.fileno()).st_mode):  # of a terminal that is gone isatty says no
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class StopSignals:
    """`requested` is None until the first signal inside `with StopSignals() as stop`, then its number.

    At that moment the handlers that were there before are put back, so that the second signal does what it did
    before: KeyboardInterrupt for Ctrl-C, the end of the process for SIGTERM. SIGHUP (the terminal is gone) stays
    ignored where it is, as under nohup. Outside the main thread, where Python does not allow handlers, nothing
    happens.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._previous: dict[int, object] = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        self._restore()
        if number == getattr(signal, "SIGHUP", None):
            leave_terminal()
        if not is_first_started():  # one of several processes, the first of which says it
            return
        with contextlib.suppress(OSError):  # not print: a handler may not re-enter a buffered stream
            os.write(2, b"\nstopping after this step; once more stops at once, without a checkpoint\n")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        self._previous.clear()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # Windows has none
                numbers.append(signal.SIGHUP)
            for number in numbers:
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()
