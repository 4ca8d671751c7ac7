"""Trackers: what a training tells them, and what a new one takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from snella.config.loop import LoopConfig
from snella.errors import UserError
from snella.report import trackers
from snella.report.trackers import Tracker, check_trackers, start_trackers


class Diary(GeneralTracker):
    """Keeps what it is told."""

    name = "diary"
    requires_logging_directory = False

    def __init__(self, folder: Path, done: int) -> None:
        super().__init__()
        self.told: list[Any] = [folder, done]

    @property
    def tracker(self) -> list[Any]:
        return self.told

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.told.append("end")


@dataclasses.dataclass(frozen=True)
class WithDiary(LoopConfig):
    diary: bool = True


def test_a_new_tracker_is_a_row_and_a_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers.TRACKERS, "diary", Tracker("diary", lambda: True, Diary))
    accelerator = Accelerator(cpu=True)
    start_trackers(accelerator, WithDiary(), tmp_path, done=3)
    accelerator.log({"loss": 0.5}, step=4)
    accelerator.end_training()
    diary: Any = accelerator.get_tracker("diary")
    assert diary.tracker == [tmp_path, 3, (4, {"loss": 0.5}), "end"]


def test_without_its_package_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers.TRACKERS, "diary", Tracker("notebook", lambda: False, Diary))
    with pytest.raises(UserError, match=r"--diary needs the package notebook; run: pip install 'snella\[notebook\]'"):
        check_trackers(WithDiary())
    check_trackers(WithDiary(diary=False))


def test_what_a_lost_part_has_logged_is_hidden(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = LoopConfig(tensorboard=True)
    for done, steps in ((0, (1, 2, 3)), (1, (2,))):  # went on from step 1
        accelerator = Accelerator(cpu=True)
        start_trackers(accelerator, settings, tmp_path, done)
        for step in steps:
            accelerator.log({"loss": done + step / 10}, step=step)
        accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, round(event.value, 3)) for event in events] == [(1, 0.1), (2, 1.2)]
