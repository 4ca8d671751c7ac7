"""What comparisons are made of: images, and runs that take place in this process."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest

import snella.compare.search
from snella.compare.jobs import Job
from support.runs import write_images
from support.trained_once import TrainedOnce


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> TrainedOnce:
    return TrainedOnce(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def ran(train: TrainedOnce, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs take place in this process, for speed; the list gets the name of each."""
    names: list[str] = []

    def here(jobs: list[Job], *, workers: int, console: Any) -> dict[Job, str]:
        failed = {}
        for job in jobs:
            names.append(job.name)
            error = io.StringIO()
            with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
                code = train(job.command[3:])
            if code:
                failed[job] = error.getvalue().splitlines()[-1].removeprefix("snella: ")
        return failed

    monkeypatch.setattr(snella.compare.search, "run_jobs", here)
    return names


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")
