"""Threads sleep while they wait where the cores are taken, and only there."""

from __future__ import annotations

import os
import sys

import pytest

from snella.cli import threads


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*threads.CHOSEN, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)


def look(monkeypatch: pytest.MonkeyPatch, *running: int | None) -> None:
    seen = iter(running)
    monkeypatch.setattr(threads, "_running", lambda: next(seen))


@pytest.mark.parametrize(
    ("running", "busy"),
    [((1, 1, 1, 1, 1), False), ((1, 3, 1, 4, 1), False), ((2, 2, 1, 2, 2), True), ((None,), False)],
)
def test_the_middle_of_some_looks_counts(
    running: tuple[int | None, ...], busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(monkeypatch, *running)
    monkeypatch.setenv("OMP_WAIT_POLICY", "x")  # so that it is put back
    monkeypatch.delenv("OMP_WAIT_POLICY")
    threads.wait_asleep_if_busy()
    assert os.environ.get("OMP_WAIT_POLICY") == ("passive" if busy else None)


def test_cores_that_are_left_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 64)  # of a host whose other guests run beside
    look(monkeypatch, *[40] * 5)
    assert not threads.is_busy()


@pytest.mark.parametrize(("count", "busy"), [("1", False), ("2", True), ("", True), ("many", True)])
def test_one_thread_waits_for_nobody(count: str, busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", count)
    look(monkeypatch, *[3] * 5)
    assert threads.is_busy() == busy


@pytest.mark.parametrize("name", threads.CHOSEN)
def test_what_the_user_has_chosen_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "active")
    before = dict(os.environ)
    look(monkeypatch, *[9] * 5)
    threads.wait_asleep_if_busy()
    assert dict(os.environ) == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what Linux says")
def test_what_the_system_says() -> None:
    running = threads._running()
    assert running is not None
    assert running >= 1
