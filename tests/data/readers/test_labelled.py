from __future__ import annotations

import os
from pathlib import Path

import pytest

from snella.data.images import UnreadableImage
from snella.data.readers.labelled import read_data, read_test_data
from snella.errors import UserError


def refusal(data: str | Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        read_data(str(data), seed=0, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


def sizes(data) -> dict[str, int]:
    return {split: len(images) for split, images in data.splits.items()}


def test_a_folder_becomes_three_splits(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path / "pets", cat=20, dog=10)
    data = read_data(str(tmp_path / "pets"), seed=0)
    assert (data.layout, data.root, data.classes) == ("image folder", str(tmp_path / "pets"), ("cat", "dog"))
    assert list(data.splits) == ["train", "val", "test"]
    assert sizes(data) == {"train": 20, "val": 5, "test": 5}
    for images in data.splits.values():
        for path, label in zip(images.paths, images.labels, strict=True):
            assert os.path.basename(os.path.dirname(path)) == data.classes[label]
    paths = [path for images in data.splits.values() for path in images.paths]
    assert len(set(paths)) == 30


def test_the_split_is_the_same_wherever_the_folder_lies(tmp_path: Path, class_folders) -> None:
    for place in ("here", "there"):
        class_folders(tmp_path / place, cat=12, dog=12)
    here, there = (read_data(str(tmp_path / place), seed=5) for place in ("here", "there"))
    for split in here.splits:
        relative = [os.path.relpath(path, tmp_path / "here") for path in here.splits[split].paths]
        assert relative == [os.path.relpath(path, tmp_path / "there") for path in there.splits[split].paths]


def test_fractions_are_shares_of_the_images(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path, cat=20, dog=20)
    data = read_data(str(tmp_path), seed=0, val_fraction=0.25, test_fraction=0.5)
    assert sizes(data) == {"train": 10, "val": 10, "test": 20}


@pytest.mark.parametrize("layout", ["manifest", "VTAB-1k", "FGVC", "image folder with splits"])
def test_every_layout_is_recognised(tmp_path: Path, class_folders, layout: str) -> None:
    for split in ("train", "val", "test"):
        class_folders(tmp_path / split, **{"0": 2, "1": 2})
    names = [f"{split}/{k}/{i}.png" for split in ("train", "val", "test") for k in "01" for i in range(2)]
    data = tmp_path
    if layout == "manifest":
        data = tmp_path / "m.csv"
        data.write_text("path,label,split\n" + "".join(f"{n},{n.split('/')[1]},{n.split('/')[0]}\n" for n in names))
    elif layout == "VTAB-1k":
        for split, file in (("train", "train800"), ("val", "val200"), ("test", "test")):
            lines = [f"{name} {name.split('/')[1]}\n" for name in names if name.startswith(split)]
            (tmp_path / f"{file}.txt").write_text("".join(lines))
    elif layout == "FGVC":
        for split in ("train", "val", "test"):
            pairs = [f'"{name}": {name.split("/")[1]}' for name in names if name.startswith(split)]
            (tmp_path / f"{split}.json").write_text("{" + ", ".join(pairs) + "}")
    read = read_data(str(data), seed=0)
    assert read.layout == layout
    assert read.classes == ("0", "1")
    assert sizes(read) == {"train": 4, "val": 4, "test": 4}
    assert read.splits["test"].paths[0] == str(tmp_path / "test" / "0" / "0.png")
    assert read.splits["val"].labels == (0, 0, 1, 1)


def test_unreadable_images_are_left_out_and_listed(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path, cat=10, dog=10)
    (tmp_path / "cat" / "bad.png").write_bytes(b"")
    (tmp_path / "dog" / "9.png").write_text("text")
    data = read_data(str(tmp_path), seed=0)
    assert [error.path for error in data.skipped] == [
        str(tmp_path / "cat" / "bad.png"),
        str(tmp_path / "dog" / "9.png"),
    ]
    assert all(isinstance(error, UnreadableImage) for error in data.skipped)
    assert sum(sizes(data).values()) == 19
    bad = {error.path for error in data.skipped}
    assert not bad & {path for images in data.splits.values() for path in images.paths}


def test_images_that_a_manifest_names_in_vain_are_listed(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path, cat=4, dog=4)
    rows = [f"{k}/{i}.png,{k}\n" for k in ("cat", "dog") for i in range(5)]
    (tmp_path / "m.csv").write_text("path,label\n" + "".join(rows))
    skipped = read_data(str(tmp_path / "m.csv"), seed=0).skipped
    assert [error.reason for error in skipped] == ["no such file or directory"] * 2


def test_progress_counts_to_the_end(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path, cat=5, dog=5)
    calls: list[tuple[int, int]] = []
    read_data(str(tmp_path), seed=0, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (10, 10)


def test_data_that_cannot_be_trained_on_is_refused(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path / "one", cat=5)
    assert "one class only ('cat')" in refusal(tmp_path / "one")

    class_folders(tmp_path / "broken", cat=3, dog=3)
    for path in (tmp_path / "broken").rglob("*.png"):
        path.write_bytes(b"")
    assert "none of the 6 images can be read" in refusal(tmp_path / "broken")

    class_folders(tmp_path / "half", cat=5, dog=1)
    (tmp_path / "half" / "dog" / "0.png").write_text("text")
    assert "class 'dog' has no readable image" in refusal(tmp_path / "half")

    class_folders(tmp_path / "few", cat=1, dog=1)
    assert "too few" in refusal(tmp_path / "few")

    class_folders(tmp_path / "gap" / "train", cat=5, dog=5)
    class_folders(tmp_path / "gap" / "test", cat=5, cow=5)
    assert "class 'cow' has no image in train" in refusal(tmp_path / "gap")

    class_folders(tmp_path / "blind" / "train", cat=5, dog=5)
    class_folders(tmp_path / "blind" / "val", cat=1)
    (tmp_path / "blind" / "val" / "cat" / "0.png").write_text("text")
    assert "no image of val can be read" in refusal(tmp_path / "blind")

    class_folders(tmp_path / "untrained" / "test", cat=5, dog=5)
    assert "no train split" in refusal(tmp_path / "untrained")


def test_paths_that_are_not_data_are_refused(tmp_path: Path, picture) -> None:
    (tmp_path / "folder").mkdir()
    assert "is empty" in refusal(tmp_path / "folder")
    assert f"did you mean {tmp_path / 'folder'}" in refusal(tmp_path / "foldr")
    assert "give a folder of class folders" in refusal("/nowhere-at-all")
    assert "did you mean elpv-levels" in refusal("elpv-level")
    assert "single image" in refusal(picture(tmp_path / "a.jpg"))
    for name, said in (("a.zip", "unpack"), ("a.xlsx", "manifest")):
        (tmp_path / name).write_bytes(b"x")
        assert said in refusal(tmp_path / name)


def test_a_folder_that_cannot_be_opened_is_named(tmp_path: Path, class_folders, monkeypatch) -> None:
    root = class_folders(tmp_path, cat=2, dog=2)

    def denied(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", denied)
    assert f"{root} cannot be read: permission denied" in refusal(root)


@pytest.mark.parametrize(
    "options", [{"val_fraction": 0.0}, {"test_fraction": 1.0}, {"val_fraction": 0.6, "test_fraction": 0.5}]
)
def test_fractions_out_of_range_are_refused(options: dict[str, float]) -> None:
    assert "fraction" in refusal("anything", **options)


def test_a_class_that_a_split_lacks_is_noted(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path / "train", cat=5, dog=5)
    class_folders(tmp_path / "val", cat=2)
    class_folders(tmp_path / "test", cat=2, dog=2)
    assert "1 of 2 classes have no image in val: dog" in read_data(str(tmp_path), seed=0).notes


def test_a_published_label_set_may_have_gaps(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path, a=4)
    for file in ("train800", "val200", "test"):
        (tmp_path / f"{file}.txt").write_text("a/0.png 0\na/1.png 3\n")
    data = read_data(str(tmp_path), seed=0)
    assert len(data.classes) == 4
    assert "2 of 4 classes have no image in train: 1, 2" in data.notes


def test_test_data_is_labelled_by_the_models_classes(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path, dog=2, cat=1)
    data = read_test_data(str(tmp_path), ("dog", "cow", "cat"), seed=0)
    assert data.classes == ("dog", "cow", "cat")
    assert list(data.splits) == ["test"]
    assert data.splits["test"].labels == (2, 0, 0)


def test_test_data_takes_the_test_split(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path / "train", dog=2, cat=2)
    class_folders(tmp_path / "val", cat=1)
    data = read_test_data(str(tmp_path), ("cat", "dog"), seed=0)
    assert data.splits["test"].paths == (str(tmp_path / "val" / "cat" / "0.png"),)
    assert "no test split: val is used" in data.notes
    class_folders(tmp_path / "test", dog=1)
    data = read_test_data(str(tmp_path), ("cat", "dog"), seed=0)
    assert data.splits["test"].paths == (str(tmp_path / "test" / "dog" / "0.png"),)


def test_test_data_of_an_unknown_class_is_refused(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path, dog=2, cow=1)
    with pytest.raises(UserError, match=r"class 'cow' of cow/0\.png is not among the model's 2 classes"):
        read_test_data(str(tmp_path), ("cat", "dog"), seed=0)
