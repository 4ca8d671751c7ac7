"""The suite of public data sets: each task reads its data as the settings say; skipped where the set is absent."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from snella.cli.main import main
from snella.config.suites import read_suite, read_suite_task
from snella.config.validation import validate
from snella.data.readers import labelled
from snella.tasks.registry import task_named
from support.downloads import published

# task: images of train, val and test, classes, as published or by the fractions of the settings
READ = {
    "grocery": (2640, 296, 2485, 81),
    "grocery-5": (405, 296, 2485, 81),
    "sign-digits": (200, 208, 1032, 10),
    "magnetic-tiles": (940, 202, 202, 6),
    "camvid": (367, 101, 233, 11),
    "magnetic-tiles-segment": (940, 202, 202, 2),
}


def test_the_tasks_are_valid_and_need_a_folder() -> None:
    suite = read_suite("public")
    assert [task.name for task in suite.tasks] == list(READ)
    for task in suite.tasks:
        validate(task.config)
    assert suite.needs_folder
    assert {mark.method.split(" - ")[0] for mark in suite.published} <= READ.keys()
    text = json.dumps([mark.source for mark in suite.published])
    assert all(mark in text for mark in ("86.04", "91.99", "51.3", "60.1", "61.6", "65.3", "66.9", "95 to 98"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "segment" in name else name for name in READ]
)
def test_a_task_reads_its_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without decoding photographs to be classified, of which there are thousands."""
    config = read_suite_task(f"public/{name}")
    folder = (config.data.source or "").split("/")[0]
    config = read_suite_task(f"public/{name}", str(Path(published(folder)).parent))
    monkeypatch.setattr(labelled, "drop_unreadable", lambda data, listing, progress: listing)
    data = task_named(config.task).read(config, None)
    assert (*(len(data.splits[split]) for split in ("train", "val", "test")), len(data.classes)) == READ[name]
    if config.data.shots is not None:
        counts = Counter(data.splits["train"].labels)
        assert set(counts.values()) == {config.data.shots}
        assert any(f"{config.data.shots} images of each class at most" in note for note in data.notes)
    if name == "camvid":
        assert data.code.ignore == (11,)


def test_a_task_trains_by_its_name(tmp_path: Path) -> None:
    data = Path(published("sign-digits")).parent
    out = tmp_path / "run"
    command = ["train", "--recipe", "public/sign-digits", "--data", str(data), "--smoke", "--device", "cpu"]
    assert main([*command, "--backbone", "test_vit", "--no-pretrained", "--image-size", "32", "--out", str(out)]) == 0
    assert json.loads((out / "start.json").read_text())["images"] == {"train": 80, "val": 80, "test": 80}
    assert 0 <= json.loads((out / "summary.json").read_text())["test"]["top1"] <= 1
