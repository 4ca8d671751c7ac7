"""As many epochs as fill a time. Imports nothing, so that a program's own environment can."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Trained = TypeVar("Trained")
ENOUGH = 0.75  # of the time


def filled(train: Callable[[int], Trained], seconds: float) -> tuple[Trained, int, float]:
    """Train anew with more and more epochs until one training fills the time; return it, its epochs and its seconds.

    The first trainings are thrown away: what a program does once, an epoch alone is mostly made of.
    """
    epochs, start = 1, time.perf_counter()
    found = train(epochs)
    while (took := time.perf_counter() - start) < ENOUGH * seconds:
        epochs, start = max(epochs + 1, int(epochs * seconds / took)), time.perf_counter()
        found = train(epochs)
    return found, epochs, took
