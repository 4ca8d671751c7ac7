from __future__ import annotations

import json
from pathlib import Path

import pytest

from snella.data.layouts.vtab_fgvc import VTAB_CLASSES, fgvc, is_fgvc, is_vtab, vtab
from snella.errors import UserError


def test_vtab_splits_and_classes(tmp_path: Path) -> None:
    (tmp_path / "train800.txt").write_text("images/train800/a b.jpg 2\nimages/train800/c.jpg 0\n\n")
    (tmp_path / "val200.txt").write_text("images/val200/d.jpg 1\n")
    (tmp_path / "train800val200.txt").write_text("images/train800val200/e.jpg 1\n")
    (tmp_path / "test.txt").write_text("images/test/f.jpg 11\n")
    assert is_vtab(str(tmp_path))
    listing = vtab(str(tmp_path))
    assert listing.classes == tuple(map(str, range(12)))  # by value, with those that do not occur
    assert listing.splits == {
        "train": [("images/train800/a b.jpg", 2), ("images/train800/c.jpg", 0)],
        "val": [("images/val200/d.jpg", 1)],
        "test": [("images/test/f.jpg", 11)],
    }
    assert "train800val200" in listing.notes[0]


def test_vtab_with_the_joined_file_only(tmp_path: Path) -> None:
    (tmp_path / "train800val200.txt").write_text("a.jpg 0\nb.jpg 1\n")
    listing = vtab(str(tmp_path))
    assert listing.splits == {"train": [("a.jpg", 0), ("b.jpg", 1)]}
    assert "test.txt is missing" in listing.notes


def test_known_vtab_tasks_have_their_class_count(tmp_path: Path) -> None:
    assert len(VTAB_CLASSES) == 19
    root = tmp_path / "sun397"
    root.mkdir()
    (root / "train800.txt").write_text("a.jpg 0\n")
    assert len(vtab(str(root)).classes) == 397
    (root / "train800.txt").write_text("a.jpg 0\nb.jpg 397\n")
    with pytest.raises(UserError, match=r"line 2: label 397 is out of range \(0 to 396\)"):
        vtab(str(root))


@pytest.mark.parametrize(
    ("line", "said"), [("a.jpg -1", "out of range"), ("a.jpg", "expected"), ("a.jpg x", "expected")]
)
def test_vtab_faults_are_placed(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "train800.txt").write_text(f"b.jpg 0\n{line}\n")
    with pytest.raises(UserError, match=rf"train800\.txt line 2: .*{said}"):
        vtab(str(tmp_path))


@pytest.mark.parametrize("folder", ["images", "Images", ""])
def test_fgvc_remaps_labels_and_finds_the_images(tmp_path: Path, picture, folder: str) -> None:
    picture(tmp_path / folder / "x" / "b.jpg")
    (tmp_path / "train.json").write_text(json.dumps({"x/a.jpg": 10, "x/b.jpg": 2}))
    (tmp_path / "test.json").write_text(json.dumps({"x/c.jpg": 10}))
    assert is_fgvc(str(tmp_path))
    listing = fgvc(str(tmp_path))
    prefix = f"{folder}/" if folder else ""
    assert listing.classes == ("2", "10")
    assert listing.splits == {
        "train": [(f"{prefix}x/a.jpg", 1), (f"{prefix}x/b.jpg", 0)],
        "test": [(f"{prefix}x/c.jpg", 1)],
    }
    assert listing.notes == ("val.json is missing",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "no {image: class} table"),
        ('{"a.jpg": [1]}', "the class of a.jpg is [1]"),
        ('{"a.jpg": -1}', "out of range"),
        ('{"a.jpg": 1}', "no image of"),
    ],
)
def test_fgvc_faults_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(UserError) as caught:
        fgvc(str(tmp_path))
    assert said in str(caught.value)
