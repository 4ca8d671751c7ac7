"""Trackers of whole trainings: what a run tells them, and that it ends well where they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker

from snella.report import trackers
from support.runs import rows, train


class Listener(GeneralTracker):
    """Keeps what it is told, and fails at the second validation where it is asked to."""

    name = "listener"
    requires_logging_directory = False

    def __init__(self, told: list[Any], *, fails: bool) -> None:
        super().__init__()
        self.told = told
        self.fails = fails

    @property
    def tracker(self) -> list[Any]:
        return self.told

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        if self.fails and any(row[0] == "val" for row in self.told):
            raise ConnectionError("the server is gone")
        self.told.append((next(iter(values)).partition("/")[0], step))

    def picture(self, name: str, path: Path, step: int) -> None:
        self.told.append((name, step))

    def artifact(self, name: str, path: Path) -> None:
        assert path.exists()
        self.told.append((name, None))


@pytest.mark.parametrize("fails", [False, True])
def test_a_training_tells_its_trackers_and_ends_whatever_they_do(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: bool
):
    told: list[Any] = []
    row = trackers.Tracker("wandb", lambda: True, lambda place: Listener(told, fails=fails))
    monkeypatch.setitem(trackers.TRACKERS, "wandb", row)
    assert train(images, tmp_path / "run", "--tracker", "wandb", "--tracker-adapter") == 0
    steps = [row["step"] for row in rows(tmp_path / "run", "val")]
    assert (tmp_path / "run" / "summary.json").is_file()
    printed = capsys.readouterr().out
    if fails:
        assert printed.count("wandb failed (the server is gone); the training goes on without it") == 1
        assert [step for kind, step in told if kind == "val"] == steps[:1]
        return
    assert [step for kind, step in told if kind == "val"] == steps
    assert [step for kind, step in told if kind == "test"] == steps[-1:]
    assert {"curves", "confusion", "report", "adapter"} <= {kind for kind, _ in told}


def test_an_unknown_tracker_and_an_adapter_for_none_are_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert train(images, tmp_path / "run", "--tracker", "wandb,tensorbord") == 2
    assert "--tracker tensorbord is unknown; did you mean tensorboard?" in capsys.readouterr().err
    assert train(images, tmp_path / "run", "--tracker-adapter") == 2
    assert "--tracker-adapter: no --tracker is named" in capsys.readouterr().err
