"""Runs of two processes are those of one; what goes wrong in one of them is said once, and ends all of them."""

from __future__ import annotations

import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from support import masked_runs, several
from support.runs import adapter, read, write_images

BASE: dict[str, Any] = {"backbone": "test_vit", "pretrained": False, "image_size": 32, "r": 4, "lr": 3e-3}
ALL = {"mixup": 0.4, "cutmix": 1.0, "update_drop_path": 0.2, "accumulate": 2, "ema": 0.8, "head_first": True}
ROUNDING = 1e-5  # of losses


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("several") / "images")


@pytest.fixture(scope="module")
def runs(python: str, images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Path]]:
    """Runs by the number of their processes and by name. Batches do not divide evenly."""
    folder = tmp_path_factory.mktemp("runs-of-several")
    pairs = masked_runs.write_pairs(folder / "pairs")
    jobs = {
        "classify": {**BASE, **ALL, "data": str(images), "batch_size": 3, "epochs": 2},
        "segment": {**BASE, "data": str(pairs), "task": "segment", "batch_size": 3, "epochs": 1, "loss": "ce+dice"},
    }
    return {count: several.train_jobs(python, count, folder, jobs) for count in (1, 2)}


@pytest.mark.parametrize("name", ["classify", "segment"])
def test_two_processes_end_where_one_does(runs: dict[int, dict[str, Path]], name: str) -> None:
    alone, together = runs[1][name], runs[2][name]
    assert several.largest_difference(alone, together) < ROUNDING
    assert several.allocations(together) == several.allocations(alone)
    ours, theirs = read(together / "summary.json"), read(alone / "summary.json")
    for split in ("val", "test"):
        assert ours[split] == pytest.approx(theirs[split], abs=ROUNDING)
    assert ours["images"] == theirs["images"]
    assert adapter(together).keys() == adapter(alone).keys()
    assert not list(together.glob("**/.*"))  # nothing half-written


def flags(out: Path, data: Path, *more: str) -> list[str]:
    named = ["--data", str(data), "--out", str(out), "--backbone", "test_vit", "--no-pretrained", "--image-size", "32"]
    return ["-m", "snella", "train", *named, "--r", "4", "--lr", "3e-3", "--device", "cpu", "--batch-size", "8", *more]


def said(processes: list[Popen[str]], timeout: float = several.TIMEOUT) -> tuple[list[int], list[str]]:
    """Return exit codes, and the lines of all processes' standard error."""
    found = several.ended(processes, timeout)
    return [process.code for process in found], [line for process in found for line in process.err.splitlines() if line]


def wait_for_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + several.TIMEOUT
    while time.monotonic() < deadline:
        if any(int(path.name[5:]) >= step for path in (folder / "checkpoints").glob("step-*")):
            return
        time.sleep(0.01)
    raise TimeoutError(f"{folder} has no checkpoint of step {step}")


@pytest.mark.slow
def test_of_two_processes_one_is_killed_and_the_run_goes_on_in_one(python: str, images: Path, tmp_path: Path) -> None:
    out, straight = tmp_path / "run", tmp_path / "straight"
    few = flags(out, images, "--epochs", "3", "--checkpoint-every", "1")
    processes = several.start(python, 2, *few)
    wait_for_step(out, 2)
    processes[1].kill()
    start = time.monotonic()
    codes, lines = said(processes)
    assert time.monotonic() - start < 60
    assert codes == [1, -9]
    expected = f"snella: another process of this training has ended; this goes on: snella train --recipe {out}"
    assert [line.startswith(expected) for line in lines] == [True]
    assert said(several.start(python, 1, *few, "--resume")) == ([0], [])
    assert said(several.start(python, 1, *few, "--out", str(straight))) == ([0], [])
    assert several.largest_difference(out, straight) < ROUNDING
    assert several.allocations(out) == several.allocations(straight)


@pytest.mark.parametrize("what", ["settings", "images"])
def test_a_process_that_starts_otherwise_is_named_before_the_first_step(
    what: str, python: str, images: Path, tmp_path: Path
) -> None:
    fewer = write_images(tmp_path / "images")
    (fewer / "c1" / "3.png").unlink()
    own, expected = {
        "settings": ([["--seed", "0"], ["--seed", "4"]], "process 1 has --seed 4, and process 0 has 0; start all"),
        "images": (
            [["--data", str(images)], ["--data", str(fewer)]],
            "process 1 has other data than process 0 (gone: train/c1/3.png",
        ),
    }[what]
    codes, lines = said(several.start(python, 2, *flags(tmp_path / "run", images), own=own))
    assert codes == [2, 2]
    assert [line.startswith(f"snella: {expected}") for line in lines] == [True]
    assert not (tmp_path / "run").exists()
