"""What a person sees while a model trains: bars and a curve on a terminal, plain lines in a file."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from statistics import median
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

LINE_EVERY = 30.0  # seconds between plain lines of steps: a log that is neither silent nor flooded
RECENT = 50  # steps whose median says how long one takes: the first ones, and those beside other work, do not count
CURVE = 20  # validations that the curve shows
BLOCKS = "▁▂▃▄▅▆▇█"


class Speed:
    """Images per second since the last `restart`."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.images = 0
        self._start = time.perf_counter()

    def per_second(self) -> float:
        return self.images / max(time.perf_counter() - self._start, 1e-9)


class Pace:
    """How long a step, and the validation after an epoch, take: by the medians of the last ones."""

    def __init__(self) -> None:
        self._steps = deque[float](maxlen=RECENT)  # seconds each
        self._rates = deque[float](maxlen=RECENT)  # images per second of each
        self._validations = deque[float](maxlen=RECENT)
        self._last = time.perf_counter()

    def stepped(self, images: int) -> None:
        """Note that a step has ended."""
        seconds = max(self._since_last(), 1e-9)
        self._steps.append(seconds)
        self._rates.append(images / seconds)

    def validated(self) -> None:
        """Note that the validation after an epoch has ended."""
        self._validations.append(self._since_last())

    def images_per_second(self) -> float:
        return median(self._rates) if self._rates else 0.0

    def left(self, steps: int, epochs: int) -> float | None:
        """Return the seconds that so many steps and validations take; None before the first step."""
        if not self._steps:
            return None
        return steps * median(self._steps) + (epochs * median(self._validations) if self._validations else 0)

    def _since_last(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


class Progress(AbstractContextManager["Progress"]):
    """Shows steps, validation and epochs on `console`.

    Args:
        epochs, steps: of the run.
        done: steps before a resume.
        curve: what chose the best epoch, of each epoch before a resume.
        hidden: metrics that are not shown.
    """

    def __init__(
        self,
        console: Console,
        *,
        epochs: int,
        steps: int,
        done: int,
        curve: Sequence[float] = (),
        hidden: Collection[str] = (),
    ) -> None:
        self._epochs = epochs
        self._steps = steps
        self._pace = Pace()
        self._curve = list(curve)
        self._hidden = hidden
        self._last_line = time.perf_counter()
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[eta]}"),
            TextColumn("{task.fields[curve]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        none: dict[str, Any] = {"text": "", "eta": "", "curve": ""}
        self._training = self._bars.add_task("starting", total=steps, completed=done, **none)
        self._validation = self._bars.add_task("validation", total=None, visible=False, **none)
        self._show_curve()

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def step(self, step: int, epoch: int, *, loss: float, images: int, memory: int) -> None:
        """Show where it is after an optimiser step of so many images; `memory` in bytes."""
        self._pace.stepped(images)
        text = f"loss {loss:.4f}  {self._pace.images_per_second():.1f} images/s  {decimal(memory)}"
        head = f"epoch {epoch}/{self._epochs}"
        left = self._pace.left(self._steps - step, self._epochs - epoch + 1)
        eta = "" if left is None else f"ETA {_clock(left)}"
        self._bars.update(self._training, completed=step, description=head, text=text, eta=eta)
        if self._bars.disable and time.perf_counter() - self._last_line >= LINE_EVERY:
            self._print(f"{head}  step {step}/{self._steps}  {text}  {eta}")

    def validated(self, batches: int, total: int) -> None:
        """Show where it is after a batch of the validation."""
        self._bars.update(self._validation, completed=batches, total=total, visible=batches < total)

    def epoch_done(self, epoch: int, metrics: Mapping[str, float], *, score: float, best: bool) -> None:
        """Show the metrics after the validation of an epoch; `score` is what chooses the best one."""
        self._pace.validated()
        self._curve.append(score)
        self._show_curve()
        values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name not in self._hidden)
        self._print(f"epoch {epoch}/{self._epochs}  val: {values}{'  (best so far)' if best else ''}")

    def _show_curve(self) -> None:
        shown = self._curve[-CURVE:]
        self._bars.update(self._training, curve=f"val {sparkline(shown)}" if len(shown) > 1 else "")

    def _print(self, line: str) -> None:
        self._last_line = time.perf_counter()
        self._bars.console.print(line, highlight=False, markup=False, soft_wrap=True)


def sparkline(values: Sequence[float]) -> str:
    """Return a line of blocks, one a value, from the lowest to the highest; a space where it is not finite.

    >>> sparkline([0.0, 0.5, float("nan"), 1.0])
    '▁▅ █'
    """
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return " " * len(values)
    low, span = min(known), max(known) - min(known)
    places = [round((value - low) / span * 7) if span and math.isfinite(value) else 0 for value in values]
    return "".join(BLOCKS[p] if math.isfinite(v) else " " for p, v in zip(places, values, strict=True))


def _clock(seconds: float) -> str:
    """Return a time as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
