"""With a package of the same layout in place of elpv-dataset; the real one is read where it is installed."""

from __future__ import annotations

import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from snella.data.bundled.elpv import INSTALL, elpv
from snella.data.readers.labelled import read_data
from snella.errors import UserError

LEVELS = {"0.0": 1508, "0.3333333333333333": 295, "0.6666666666666666": 106, "1.0": 715}  # as published


@pytest.fixture
def package(tmp_path: Path, monkeypatch) -> Path:
    """A package with the published counts and no images; importing it fails, so reading must not."""
    root = tmp_path / "elpv_dataset"
    (root / "data").mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    lines = [level for level, count in LEVELS.items() for _ in range(count)]
    types = ("mono", "poly")
    rows = [f"images/cell{i:04d}.png  {level}   {types[i % 3 == 0]}" for i, level in enumerate(lines)]
    (root / "data" / "labels.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "elpv_dataset", raising=False)
    return root


def test_sizes_classes_and_notes(package: Path) -> None:
    data = elpv("elpv", seed=0)
    assert data.folder == str(package / "data")
    assert data.classes == ("functional", "defective")
    assert {split: len(items) for split, items in data.splits.items()} == {"train": 800, "val": 200, "test": 1624}
    counts = Counter(label for items in data.splits.values() for _, label in items)
    assert counts == {0: 1508 + 295, 1: 106 + 715}
    notes = " ".join(data.notes)
    assert "CC BY-NC-SA 4.0" in notes
    assert "88.4 %" not in notes
    assert "88.4 %" in data.caveat


def test_the_four_levels_share_the_split(package: Path) -> None:
    two, four = elpv("elpv", seed=3), elpv("elpv-levels", seed=3)
    assert len(four.classes) == 4
    for split in ("train", "val", "test"):
        assert [name for name, _ in two.splits[split]] == [name for name, _ in four.splits[split]]
        assert [label for _, label in two.splits[split]] == [int(label > 1) for _, label in four.splits[split]]
        shares = Counter(label for _, label in four.splits[split])
        for level, total in enumerate(LEVELS.values()):
            assert shares[level] / len(four.splits[split]) == pytest.approx(total / 2624, abs=0.01)


def test_the_cell_types(package: Path) -> None:
    data = elpv("elpv-type", seed=0)
    assert data.classes == ("mono", "poly")
    assert {split: len(items) for split, items in data.splits.items()} == {"train": 100, "val": 200, "test": 2324}
    labels = dict(entry for entries in data.splits.values() for entry in entries)
    rows = [line.split() for line in (package / "data" / "labels.csv").read_text().splitlines()]
    assert labels == {name: data.classes.index(cell_type) for name, _, cell_type in rows}
    levels = {name: level for name, level, _ in rows}
    for entries in data.splits.values():
        shares = Counter((levels[name], label) for name, label in entries)
        for (level, cell_type), total in Counter((level, cell_type) for _, level, cell_type in rows).items():
            expected = total * len(entries) / 2624
            assert shares[level, data.classes.index(cell_type)] == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("name", ["elpv", "elpv-levels", "elpv-type"])
def test_the_seed_decides(package: Path, name: str) -> None:
    assert elpv(name, seed=0).splits == elpv(name, seed=0).splits
    assert elpv(name, seed=0).splits["train"] != elpv(name, seed=1).splits["train"]


def test_a_missing_package_is_one_command_away(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "elpv_dataset", None)
    with pytest.raises(UserError) as caught:
        read_data("elpv", seed=0)
    assert INSTALL in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_that_name_wins(package: Path, tmp_path: Path, monkeypatch, class_folders) -> None:
    monkeypatch.chdir(tmp_path)
    class_folders("elpv", a=5, b=5)
    data = read_data("elpv", seed=0)
    assert data.layout == "image folder"
    assert data.classes == ("a", "b")


@pytest.mark.skipif(find_spec("elpv_dataset") is None, reason="elpv-dataset is not installed")
def test_the_real_package() -> None:
    data = read_data("elpv", seed=0)
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 800, "val": 200, "test": 1624}
    assert not data.skipped
    assert data.splits["train"][0]["image"].size == (300, 300)
    types = elpv("elpv-type", seed=0)
    assert Counter(label for entries in types.splits.values() for _, label in entries) == {0: 1074, 1: 1550}
    levels = elpv("elpv-levels", seed=0)
    counts = Counter(label for entries in levels.splits.values() for _, label in entries)
    assert counts == dict(enumerate(LEVELS.values()))
    assert all({label for _, label in entries} == {0, 1, 2, 3} for entries in levels.splits.values())


@pytest.mark.parametrize(("name", "count"), [("elpv-mono", 1074), ("elpv-poly", 1550)])
def test_the_cells_of_one_type_are_those_of_elpv(name: str, count: int) -> None:
    whole, part = elpv("elpv", seed=3), elpv(name, seed=3)
    labels = dict(entry for split in whole.splits.values() for entry in split)
    found = [entry for split in part.splits.values() for entry in split]
    assert len(found) == len(dict(found)) == count
    assert all(labels[image] == label for image, label in found)
    assert (len(part.splits["train"]), len(part.splits["val"])) == (300, 150)
