"""Paths in manifests as other systems write them, and data to test a run on."""

from __future__ import annotations

import os
from pathlib import Path

from snella.data.folders.choices import Choices
from snella.data.readers.labelled import read_data, read_test_data
from snella.tasks.multilabel.listing import lister
from support.downloads import lay, photos

COLUMN = Choices(label_column="label")


def test_backslashes_divide_folders_as_on_windows(tmp_path: Path) -> None:
    rows = "".join(f"pets\\{pet}\\{i}.jpg,{pet}\n" for pet in ("cat", "dog") for i in range(8))
    root = lay(tmp_path, {**photos("pets/cat", "pets/dog"), "all.csv": f"path,label\n{rows}"})
    data = read_data(f"{root}/all.csv", seed=0)
    assert sum(map(len, data.splits.values())) == 16
    assert all(os.path.isfile(path) for images in data.splits.values() for path in images.paths)
    labels = read_data(f"{root}/all.csv", seed=0, lister=lister("none"), choices=COLUMN)
    assert sum(map(len, labels.splits.values())) == 16


def test_a_backslash_may_be_a_letter_of_a_name(tmp_path: Path) -> None:
    names = [f"a\\{i}.jpg" for i in range(8)]
    rows = "".join(f"{name},{'xy'[i % 2]}\n" for i, name in enumerate(names))
    root = lay(tmp_path, {**dict.fromkeys(names), **photos("a"), "all.csv": f"path,label\n{rows}"})
    data = read_data(f"{root}/all.csv", seed=0)
    assert {os.path.basename(path) for images in data.splits.values() for path in images.paths} == set(names)


def test_an_empty_class_folder_in_data_to_test_on_is_told(tmp_path: Path) -> None:
    root = lay(tmp_path, photos("cat", "dog"))
    (tmp_path / "horse").mkdir()
    data = read_test_data(root, ("cat", "dog", "horse"), seed=0)
    assert len(data.splits["test"]) == 16
    assert "folders without images, left out: horse" in data.notes
