from __future__ import annotations

from pathlib import Path

import pytest

from snella.data.folders.choices import Choices
from snella.data.layouts.class_folders import image_folder
from snella.errors import UserError


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        image_folder(str(root))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_class_folders(tmp_path: Path, class_folders, picture) -> None:
    class_folders(tmp_path, c10=1, c2=2)
    picture(tmp_path / "c2" / "deeper" / "x.jpg")
    listing = image_folder(str(tmp_path))
    assert listing.layout == "image folder"
    assert listing.classes == ("c2", "c10")
    assert listing.splits == {"all": [("c2/0.png", 0), ("c2/1.png", 0), ("c2/deeper/x.jpg", 0), ("c10/0.png", 1)]}
    assert listing.images("all").paths[0] == str(tmp_path / "c2" / "0.png")


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_split_folders_by_their_usual_names(tmp_path: Path, class_folders, val: str) -> None:
    for split in ("train", val, "test"):
        class_folders(tmp_path / split, a=2, b=1)
    listing = image_folder(str(tmp_path))
    assert listing.layout == "image folder with splits"
    assert listing.classes == ("a", "b")
    assert listing.splits["val"] == [(f"{val}/a/0.png", 0), (f"{val}/a/1.png", 0), (f"{val}/b/0.png", 1)]
    assert set(listing.splits) == {"train", "val", "test"}


def test_classes_are_those_of_all_splits(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path / "train", b=1, c=1)
    class_folders(tmp_path / "test", a=1, c=1)
    listing = image_folder(str(tmp_path))
    assert listing.classes == ("a", "b", "c")
    assert listing.splits["test"] == [("test/a/0.png", 0), ("test/c/0.png", 2)]


def test_a_class_may_be_called_train_where_it_is_said(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path, bus=1, train=1)
    assert "two readings: train is a split" in refusal(tmp_path)
    assert image_folder(str(tmp_path), Choices("top")).classes == ("bus", "train")


def test_what_is_left_out_is_said(tmp_path: Path, class_folders, picture) -> None:
    class_folders(tmp_path / "train", a=1, b=1)
    class_folders(tmp_path / "extra", a=1)
    picture(tmp_path / "train" / "loose.png")
    notes = " ".join(image_folder(str(tmp_path)).notes)
    assert "extra" in notes
    assert "1 images directly in" in notes


def test_split_folders_without_classes_are_refused(tmp_path: Path, picture) -> None:
    picture(tmp_path / "train" / "a.png")
    picture(tmp_path / "test" / "b.png")
    assert "no class folders" in refusal(tmp_path)


def test_one_split_without_classes_is_refused(tmp_path: Path, class_folders, picture) -> None:
    class_folders(tmp_path / "train", a=1, b=1)
    picture(tmp_path / "test" / "b.png")
    text = refusal(tmp_path)
    assert str(tmp_path / "test") in text
    assert "no class folders" in text


def test_two_folders_for_a_split_are_refused(tmp_path: Path, class_folders) -> None:
    for split in ("train", "val", "valid"):
        class_folders(tmp_path / split, a=1, b=1)
    assert "two val folders, val and valid" in refusal(tmp_path)


def test_an_empty_class_folder_is_named(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path, a=1, b=1)
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refusal(tmp_path)


def test_a_class_may_be_missing_from_val(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path / "train", a=1, b=1)
    class_folders(tmp_path / "val", a=1)
    (tmp_path / "val" / "b").mkdir()
    assert image_folder(str(tmp_path)).splits["val"] == [("val/a/0.png", 0)]


def test_folders_without_a_use_say_what_was_expected(tmp_path: Path, picture) -> None:
    assert "is empty" in refusal(tmp_path)
    (tmp_path / "README.txt").write_text("")
    assert "no image and no class folder" in refusal(tmp_path)
    picture(tmp_path / "a.png")
    assert "1 images but no class folders" in refusal(tmp_path)
    (tmp_path / "labels.csv").write_text("")
    assert "labels.csv" in refusal(tmp_path)
    (tmp_path / "sub").mkdir()
    assert "holds no image" in refusal(tmp_path)
