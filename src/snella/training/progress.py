"""What a person sees while a model trains: bars on a terminal, plain lines in a file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

LINE_EVERY = 30.0  # seconds between plain lines of steps: a log that is neither silent nor flooded


class Speed:
    """Images per second since the last `restart`."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.images = 0
        self._start = time.perf_counter()

    def per_second(self) -> float:
        return self.images / max(time.perf_counter() - self._start, 1e-9)


class Progress(AbstractContextManager["Progress"]):
    """Shows steps, validation and epochs on `console`; `steps` are those of the run, `done` those before a resume."""

    def __init__(self, console: Console, *, epochs: int, steps: int, done: int) -> None:
        self._epochs = epochs
        self._steps = steps
        self._last_line = time.perf_counter()
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._training = self._bars.add_task("starting", total=steps, completed=done, text="")
        self._validation = self._bars.add_task("validation", total=None, visible=False, text="")

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def step(self, step: int, epoch: int, *, loss: float, speed: float, memory: int) -> None:
        """Show where it is after an optimiser step; `speed` in images per second, `memory` in bytes."""
        text = f"loss {loss:.4f}  {speed:.1f} images/s  {decimal(memory)}"
        head = f"epoch {epoch}/{self._epochs}"
        self._bars.update(self._training, completed=step, description=head, text=text)
        if self._bars.disable and time.perf_counter() - self._last_line >= LINE_EVERY:
            left = self._bars.tasks[self._training].time_remaining
            eta = "" if left is None else f"  ETA {left:.0f} s"
            self._print(f"{head}  step {step}/{self._steps}  {text}{eta}")

    def validated(self, batches: int, total: int) -> None:
        """Show where it is after a batch of the validation."""
        self._bars.update(self._validation, completed=batches, total=total, visible=batches < total)

    def epoch_done(self, epoch: int, metrics: Mapping[str, float], *, best: bool) -> None:
        """Show the metrics after the validation of an epoch."""
        values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self._print(f"epoch {epoch}/{self._epochs}  val: {values}{'  (best so far)' if best else ''}")

    def _print(self, line: str) -> None:
        self._last_line = time.perf_counter()
        self._bars.console.print(line, highlight=False, markup=False, soft_wrap=True)
