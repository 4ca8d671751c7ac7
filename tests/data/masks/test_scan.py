from __future__ import annotations

import os
from pathlib import Path

from snella.data.readers.masked import read_masked_data
from support.masked import refusal, write_image, write_mask, write_pairs, write_polyps


def test_an_unknown_value_is_named_with_its_file(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "val", "test")):
        write_pairs(tmp_path / split, 3, first=10 * i)
    path = write_mask(tmp_path / "val" / "masks" / "11.png", (0, 7))
    said = refusal(tmp_path)
    assert f"{path}: value 7 stands for no class (0 to 2)" in said
    assert "--ignore-index" in said


def test_pairs_that_cannot_be_used_are_left_out_and_listed(tmp_path: Path) -> None:
    write_pairs(tmp_path, 20)
    (tmp_path / "images" / "3.png").write_bytes(b"")
    (tmp_path / "masks" / "4.png").write_bytes(b"no image")
    write_polyps(tmp_path / "cut", ".png", 1)
    whole = (tmp_path / "cut" / "images" / "0.jpg").read_bytes()
    (tmp_path / "images" / "6.png").write_bytes(whole[:-40])  # its header is good
    write_mask(tmp_path / "masks" / "6.png", (0, 1, 2), (48, 40))
    write_mask(tmp_path / "masks" / "5.png", (0, 1), (10, 10))
    seen = []
    data = read_masked_data(str(tmp_path), seed=0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 20) for i in range(1, 21)]
    assert sum(map(len, data.splits.values())) == 16
    faults = {os.path.relpath(fault.path, tmp_path): fault.reason for fault in data.skipped}
    assert "truncated" in faults.pop("images/6.png")
    assert faults == {
        "images/3.png": "empty file (0 bytes)",
        "masks/4.png": "not an image, or in a format that Pillow does not read",
        "images/5.png": "mask is 10 x 10, image 12 x 10",
    }


def test_nothing_that_can_be_used(tmp_path: Path) -> None:
    write_pairs(tmp_path, 5)
    for path in (tmp_path / "masks").iterdir():
        write_mask(path, (0, 1), (10, 10))
    assert "none of the 5 pairs can be used, the first: " in (said := refusal(tmp_path))
    assert "mask is 10 x 10, image 12 x 10" in said
    write_pairs(tmp_path / "b" / "train", 5)
    write_pairs(tmp_path / "b" / "val", 1)
    (tmp_path / "b" / "val" / "masks" / "0.png").write_bytes(b"")
    assert "none of the 1 pairs of val can be used" in refusal(tmp_path / "b")


def test_many_pairs_are_sampled(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("snella.data.masks.scan.CHECK_ALL", 10)
    monkeypatch.setattr("snella.data.masks.scan.SCANNED", 4)
    write_pairs(tmp_path, 20)
    write_image(tmp_path / "images" / "7.png", (5, 5))
    data = read_masked_data(str(tmp_path), seed=0)
    assert sum(map(len, data.splits.values())) == 19
    assert sum(map(sum, data.pixels.values())) == 4 * 120
    assert any("those of 4 masks, evenly chosen" in note for note in data.notes)
