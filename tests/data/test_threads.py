"""Threads that read images: in order, and within the memory."""

from __future__ import annotations

import threading
import time
from itertools import count, islice

import pytest
import torch

from snella.data.threads import PixelBudget, in_threads
from snella.machine import usable_cores


def test_results_come_in_order_and_not_far_ahead() -> None:
    started = count()
    results = in_threads(lambda item: (next(started), item)[1], count())
    assert list(islice(results, 50)) == list(range(50))
    results.close()  # pyright: ignore[reportAttributeAccessIssue] (a generator)
    assert next(started) <= 50 + 2 * usable_cores() + 2


def test_what_goes_wrong_in_a_thread_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda item: 1 / item, [1, 0, 2]))


def test_torch_works_for_each_in_its_own_thread_alone_and_for_others_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert set(in_threads(lambda _: torch.get_num_threads(), range(8))) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_hold_no_more_pixels_than_the_budget() -> None:
    budget, lock = PixelBudget(100), threading.Lock()
    held, most = 0, 0

    def work(pixels: int) -> None:
        nonlocal held, most
        with budget.holding(pixels):
            with lock:
                held += pixels
                most = max(most, held)
            time.sleep(0.001)
            with lock:
                held -= pixels

    threads = [threading.Thread(target=work, args=(pixels,)) for pixels in (60, 30, 50, 40, 90, 10, 20, 100) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < most <= 100


def test_an_image_larger_than_the_budget_is_held_alone() -> None:
    budget = PixelBudget(100)
    with budget.holding(500):
        other = threading.Thread(target=lambda: budget.holding(1).__enter__(), daemon=True)
        other.start()
        other.join(0.05)
        assert other.is_alive()
    other.join(5)
    assert not other.is_alive()
