"""Stopping at a good moment: the first Ctrl-C, SIGTERM or SIGHUP asks, the second one stops at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path
from types import FrameType


class Interrupted(Exception):  # noqa: N818 — not an error
    """Training was asked to stop and did, after `step` optimiser steps.

    `checkpoint` is the folder to go on from, `signal_number` what asked: SIGINT, SIGTERM or SIGHUP.
    """

    def __init__(self, step: int, checkpoint: Path, signal_number: int) -> None:
        super().__init__(f"interrupted after step {step}; checkpoint {checkpoint}")
        self.step = step
        self.checkpoint = checkpoint
        self.signal_number = signal_number


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
