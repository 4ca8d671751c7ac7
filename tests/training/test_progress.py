"""What a person sees while a model trains."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from snella.training import progress
from snella.training.progress import Pace, Progress, sparkline


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, which a test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_the_time_left_is_that_of_the_last_steps_and_not_of_the_first(clock: list[float]):
    pace = Pace()
    assert pace.left(10, 1) is None
    for seconds in (60.0, *[2.0] * 40, 30.0, *[2.0] * 9):  # a first step that compiles, and one beside other work
        clock[0] += seconds
        pace.stepped(8)
    assert pace.left(10, 3) == 20.0
    assert pace.images_per_second() == 4.0
    clock[0] += 5.0
    pace.validated()
    clock[0] += 2.0
    pace.stepped(8)  # the validation is no part of it
    assert pace.left(10, 3) == 35.0


def test_it_follows_a_machine_that_has_become_slower(clock: list[float]):
    pace = Pace()
    for seconds in (*[1.0] * 500, *[3.0] * progress.RECENT):
        clock[0] += seconds
        pace.stepped(1)
    assert pace.left(1, 0) == 3.0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        ([0.5], "▁"),
        ([0.3, 0.3], "▁▁"),
        ([0.0, 1.0, 0.5], "▁█▅"),
        ([0.0, math.nan, 7.0], "▁ █"),
        ([math.nan, math.inf], "  "),
    ],
)
def test_a_curve_in_a_line(values: list[float], expected: str):
    assert sparkline(values) == expected


def test_a_terminal_has_the_curve_of_val_and_the_lines_no_hidden_metric():
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with Progress(console, epochs=3, steps=3, done=0, curve=[0.1], hidden={"top5"}) as shown:
        for epoch in (1, 2):
            shown.step(epoch, epoch, loss=0.5, images=4, memory=10**6)
            shown.epoch_done(epoch, {"top1": epoch / 2, "top5": 1.0}, score=epoch / 2, best=True)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "val ▁▄█" in text
    assert "ETA 0:00:0" in text
    assert "epoch 2/3  val: top1 1.0000  (best so far)" in text
    assert "top5" not in text
