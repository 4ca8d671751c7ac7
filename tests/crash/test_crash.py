"""A run that is killed, or finds the disk full, before any change of a file is resumed to the same bits.

All changes of a run of each task are tried by `make test-crash`; a few of them with the other tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support import crash, generation_runs, masked_runs, runs, tiny_pipelines

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
SHORT = ("--epochs", "1", "--workers", "0")


def classify(place: Path) -> list[str]:
    return ["--data", str(runs.write_images(place / "data", classes=2, count=6)), *runs.TINY]


def segment(place: Path) -> list[str]:
    return ["--data", str(masked_runs.write_pairs(place / "data", 8)), *masked_runs.TINY]


def generate(place: Path) -> list[str]:
    unet = tiny_pipelines.write_unet(place / "unet", classes=2)
    data = generation_runs.write_class_folders(place / "data")
    return ["--data", str(data), "--backbone", str(unet), *generation_runs.TINY]


def tried(
    python: str, place: Path, task: Callable[[Path], list[str]], mode: str, changes: str
) -> list[dict[str, object]]:
    command = [python, crash.__file__, str(place), mode, changes, *task(place), *SHORT]
    path = os.pathsep.join([str(Path(crash.__file__).parents[1]), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "SNELLA_CACHE": str(place / "cache")}
    found = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [json.loads(line) for line in found.splitlines()]


def check(found: list[dict[str, object]], mode: str) -> None:
    for trial in found:
        assert trial["same"], trial
        if mode == "kill":
            assert trial["first"] == crash.KILLED, trial
        else:
            said = trial["said"]
            assert isinstance(said, list)
            assert trial["first"] == 2, trial
            assert len(said) == 1, trial
            assert "no space left" in said[0] or "the disk is full" in said[0], trial


@pytest.mark.parametrize(("mode", "changes"), [("kill", "30"), pytest.param("full", "25", marks=pytest.mark.slow)])
def test_a_few_changes(mode: str, changes: str, python: str, tmp_path: Path) -> None:
    check(tried(python, tmp_path, classify, mode, changes), mode)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["kill", "full"])
@pytest.mark.parametrize("task", [classify, segment, generate])
def test_every_change(task: Callable[[Path], list[str]], mode: str, python: str, tmp_path: Path) -> None:
    found = tried(python, tmp_path, task, mode, "all")
    assert len(found) > 20
    check(found, mode)
