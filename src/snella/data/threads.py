"""Threads that read images: as many as there are cores, and no more pixels at a time than fit the memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

from snella.machine import usable_cores

PIXELS = 48_000_000  # of the images that are held at a time: up to half a GB while they are decoded and resized

Item = TypeVar("Item")
Result = TypeVar("Result")


class PixelBudget:
    """Lets threads hold images of `limit` pixels in all; a larger image alone.

    >>> with PixelBudget(1_000_000).holding(640 * 480):
    ...     pass
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def holding(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for an image, and keep it while the body runs."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + pixels <= self._limit)
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()


IN_FLIGHT = PixelBudget(PIXELS)  # of this process


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `function(item)` in order, computed in a thread for each core, a few items ahead of what is asked for."""
    cores = usable_cores()
    with ThreadPoolExecutor(cores, initializer=_alone) as pool:
        ahead: deque[Future[Result]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) > cores:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _alone() -> None:
    """Let torch do this thread's work in this thread alone.

    A team of OpenMP threads for each of the pool's would take the cores from one another, and from the model: each
    small operation then waits for threads that are not running (1.5 times the time of a prediction on two cores).
    """
    torch.get_num_threads()  # torch sets its own number when a thread first asks for it
    threadpool_limits(1, user_api="openmp")  # of the thread that calls it
