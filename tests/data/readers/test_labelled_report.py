from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snella.data.readers.labelled import read_data, read_test_data
from snella.data.readers.labelled_report import describe
from snella.errors import UserError
from support.printed import rows, text


def test_counts_sizes_and_unreadable_files(tmp_path: Path, class_folders, picture) -> None:
    root = class_folders(tmp_path / "pets", cat=20, dog=10)
    picture(tmp_path / "pets" / "dog" / "small.png", (4, 3))
    picture(tmp_path / "pets" / "dog" / "large.png", (40, 30))
    (tmp_path / "pets" / "cat" / "[bold]bad.png").write_bytes(b"")
    report = text(describe(read_data(root, seed=0)))
    assert "image folder, 2 classes" in report
    table = rows(report)
    assert table["class"] == ["train", "val", "test", "all"]
    assert table["cat"] == ["14", "3", "3", "20"]
    assert table["dog"] == ["8", "2", "2", "12"]
    assert table["all"] == ["22", "5", "5", "32"]
    assert "sizes: 4 x 3 to 40 x 30 pixels, median 12 x 10" in report
    assert "1 unreadable images left out:" in report
    assert "[bold]bad.png: empty file (0 bytes)" in report
    assert "taken out of the 32 training images" in report


def test_a_split_alone_is_described_too(tmp_path: Path, class_folders) -> None:
    report = text(describe(read_test_data(class_folders(tmp_path, a=2, b=1), ("b", "a"), seed=0)))
    assert rows(report)["a"] == ["2", "2"]
    assert "all 12 x 10 pixels" in report


def test_it_says_when_only_some_sizes_were_read(tmp_path: Path, class_folders, monkeypatch) -> None:
    monkeypatch.setattr("snella.data.readers.labelled_report.SIZES_OF", 5)
    data = read_data(class_folders(tmp_path, a=10, b=10), seed=0)
    assert "(of 5 images looked at)" in text(describe(data))


def test_the_caveat_comes_after_the_notes(tmp_path: Path, class_folders) -> None:
    data = replace(read_data(class_folders(tmp_path, a=10, b=10), seed=0), caveat="not for publication")
    assert text(describe(data)).rstrip().splitlines()[-2:] == [data.notes[-1], "not for publication"]


def test_errors_come_through(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is empty"):
        read_data(str(tmp_path), seed=0)
