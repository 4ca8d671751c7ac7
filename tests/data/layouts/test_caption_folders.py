from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snella.data.layouts.caption_folders import caption_folder, is_captioned, one_line
from snella.errors import UserError

CAPTION = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1).filter(str.strip)


def metadata(folder: Path, rows: Iterable[Mapping[str, object]]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder)


def texts(folder: Path, **captions: str) -> str:
    for stem, caption in captions.items():
        (folder / f"{stem}.txt").write_text(caption, encoding="utf-8")
    return str(folder)


def refused(root: str) -> str:
    with pytest.raises(UserError) as caught:
        caption_folder(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
def test_metadata_names_images_at_any_depth(tmp_path: Path, picture, column: str) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "sub" / "deep" / "b.png")
    rows = [{"file_name": "./sub//deep/b.png", column: " a  b, \n c "}, {"file_name": "a.png", column: "7", "x": 1}]
    listing, captions = caption_folder(metadata(tmp_path, rows))
    assert captions == {"sub/deep/b.png": "a  b, c", "a.png": "7"}
    assert listing.splits == {"all": [("sub/deep/b.png", 0), ("a.png", 0)]}
    assert (listing.layout, listing.classes, listing.folder) == ("captions in metadata.jsonl", (), str(tmp_path))


@given(st.lists(CAPTION, min_size=1, max_size=4))
def test_jsonl_csv_and_text_files_read_alike(captions: list[str]) -> None:
    """Commas, quotes and any script."""
    expected = {f"{i}.png": caption.strip() for i, caption in enumerate(captions)}
    for way in ("jsonl", "csv", "txt"):
        with TemporaryDirectory() as folder:
            root = Path(folder)
            for name in expected:
                (root / name).touch()  # only listed, never opened
            if way == "jsonl":
                metadata(root, [{"file_name": f"{i}.png", "text": text} for i, text in enumerate(captions)])
            elif way == "csv":
                with open(root / "metadata.csv", "w", encoding="utf-8", newline="") as file:
                    csv.writer(file).writerows([("file_name", "text"), *zip(expected, captions, strict=True)])
            else:
                texts(root, **{str(i): text for i, text in enumerate(captions)})
            assert is_captioned(folder)
            assert caption_folder(folder)[1] == expected


def test_text_files_beside_the_images(tmp_path: Path, picture) -> None:
    for name in ("a.png", "b.x.JPG", "sub/c.png"):
        picture(tmp_path / name)
    texts(tmp_path, a="\ufeff one\r\n\r\n two \n", README="about", **{"b.x": "B"})
    texts(tmp_path / "sub", c="C")
    listing, captions = caption_folder(str(tmp_path))
    assert captions == {"a.png": "one two", "b.x.JPG": "B", "sub/c.png": "C"}
    assert listing.layout == "captions in text files"
    assert listing.notes == ("text files that are not an image's caption, left out: README.txt",)


@given(st.lists(st.text(st.characters(exclude_categories=["Cc", "Z"]), min_size=1), max_size=5))
def test_lines_are_joined_by_a_space(lines: list[str]) -> None:
    assert one_line("\n".join(f" {line}\t" for line in lines)) == " ".join(lines)


@pytest.mark.parametrize("way", ["metadata", "text", "plain", "classes"])
def test_split_folders(tmp_path: Path, picture, way: str) -> None:
    for folder in ("train", "Validation", "test"):
        inner = tmp_path / folder / ("cat" if way == "classes" else "")
        picture(inner / "a.png")
        if way == "metadata":
            metadata(inner, [{"file_name": "a.png", "text": folder}])
        if way == "text":
            texts(inner, a=folder)
    listing, captions = caption_folder(str(tmp_path))
    names = {split: [name for name, _ in entries] for split, entries in listing.splits.items()}
    inner = "cat/" if way == "classes" else ""
    assert names == {
        "train": [f"train/{inner}a.png"],
        "val": [f"Validation/{inner}a.png"],
        "test": [f"test/{inner}a.png"],
    }
    assert listing.layout.endswith("with splits")
    assert is_captioned(str(tmp_path)) == (way in ("metadata", "text"))
    if captions:
        assert captions == {f"{folder}/a.png": folder for folder in ("train", "Validation", "test")}


def test_metadata_in_the_root_may_name_the_split_folders(tmp_path: Path, picture) -> None:
    names = ["train/a.png", "val/b.png", "c.png"]
    for name in names:
        picture(tmp_path / name)
    listing, _ = caption_folder(metadata(tmp_path, [{"file_name": name, "text": "x"} for name in names]))
    assert listing.splits == {"train": [("train/a.png", 0)], "val": [("val/b.png", 0)]}
    assert listing.notes == ("1 images outside the splits left out, the first: c.png",)


def test_metadata_may_have_a_column_of_splits(tmp_path: Path, picture) -> None:
    rows = [{"file_name": f"{split}.png", "text": "x", "split": split} for split in ("train", "dev", "testing")]
    for row in rows:
        picture(tmp_path / row["file_name"])
    listing, _ = caption_folder(metadata(tmp_path, rows))
    assert listing.splits == {"train": [("train.png", 0)], "val": [("dev.png", 0)], "test": [("testing.png", 0)]}
    assert "split is 'dust'" in refused(metadata(tmp_path, [{**rows[0], "split": "dust"}]))


def test_class_folders_and_plain_folders(tmp_path: Path, picture, class_folders) -> None:
    listing, captions = caption_folder(class_folders(tmp_path / "many", cat=1, dog_2=2))
    assert (listing.classes, captions) == (("cat", "dog_2"), {})
    assert listing.splits == {"all": [("cat/0.png", 0), ("dog_2/0.png", 1), ("dog_2/1.png", 1)]}
    listing, _ = caption_folder(class_folders(tmp_path / "one", dog=2))
    assert (listing.classes, listing.layout) == (("dog",), "image folder")
    picture(tmp_path / "plain" / "b.png")
    picture(tmp_path / "plain" / "a.png")
    (tmp_path / "plain" / "empty").mkdir()
    listing, captions = caption_folder(str(tmp_path / "plain"))
    assert (listing.classes, listing.layout, captions) == ((), "images", {})
    assert listing.splits == {"all": [("a.png", 0), ("b.png", 0)]}
    for name in ("many", "one", "plain"):
        assert not is_captioned(str(tmp_path / name))


def test_what_is_not_a_folder_of_captions(tmp_path: Path, picture) -> None:
    picture(tmp_path / "a.png")
    for content in ('{"file_name": "a.png", "label": "x"}\n', "[1]\n", "", '{"image": "a.png", "text": "x"}\n'):
        (tmp_path / "metadata.jsonl").write_text(content)
        assert not is_captioned(str(tmp_path))
    (tmp_path / "metadata.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "b.txt").write_text("no image of this name")
    assert not is_captioned(str(tmp_path))
    assert not is_captioned(str(tmp_path / "a.png"))
    assert not is_captioned(str(tmp_path / "nowhere"))


def test_a_tilde_is_the_home_folder(tmp_path: Path, picture, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    picture(tmp_path / "set" / "a.png")
    texts(tmp_path / "set", a="x")
    assert is_captioned("~/set")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [("a.png", "x"), ("gone.png", "x"), ("b.png", "x"), ("lost.png", "x")],
            "line 2: image gone.png does not exist (and 1 more); mend file_name",
        ),
        ([("a.png", "x")], "b.png has no caption (and 1 more), but 1 images have one"),
        ([("a.png", "x"), ("b.png", "x"), ("./a.png", "y")], "line 3: a.png is already in"),
        ([("a.png", "x"), ("../b.png", "x")], "line 2: ../b.png is not below"),
        ([("a.png", "x"), ("/b.png", "x")], "line 2: /b.png is not below"),
        ([("a.png", " \n ")], "line 1: text is blank"),
        ([("a.png", "")], "line 1: text is missing"),
        ([("a.png", None)], "line 1: text is missing"),
        ([("a.png", ["x", "y"])], "line 1: text is ['x', 'y']"),
        ([], "no rows"),
    ],
)
def test_faulty_metadata_is_refused_with_the_place(
    tmp_path: Path, picture, rows: list[tuple[str, object]], said: str
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    assert said in refused(metadata(tmp_path, [{"file_name": name, "text": text} for name, text in rows]))


def test_columns_are_named_in_the_refusal(tmp_path: Path, picture) -> None:
    picture(tmp_path / "a.png")
    root = metadata(tmp_path, [{"file_name": "a.png", "label": 1}])
    assert "no column for the captions: name it text or caption or prompt (found: file_name, label)" in refused(root)
    metadata(tmp_path, [{"path": "a.png", "text": "x"}])
    assert "no column for the image paths: name it file_name" in refused(root)
    metadata(tmp_path, [{"file_name": "a.png", "text": "x", "caption": "y"}])
    assert "keep one" in refused(root)


def test_two_tables_may_not_name_one_image(tmp_path: Path, picture) -> None:
    picture(tmp_path / "train" / "a.png")
    metadata(tmp_path, [{"file_name": "train/a.png", "text": "x"}])
    metadata(tmp_path / "train", [{"file_name": "a.png", "text": "y"}])
    said = refused(str(tmp_path))
    assert f"{tmp_path / 'train' / 'metadata.jsonl'} line 1: train/a.png is already in" in said
    assert f"{tmp_path / 'metadata.jsonl'} line 1" in said


@pytest.mark.parametrize(
    ("captions", "said"),
    [
        ({"a": "x"}, "b.png has no caption, but 1 images have one"),
        ({"a": "x", "b": " \n"}, "b.txt is empty"),
    ],
)
def test_text_files_that_lack(tmp_path: Path, picture, captions: dict[str, str], said: str) -> None:
    for name in ("a.png", "b.png"):
        picture(tmp_path / name)
    assert said in refused(texts(tmp_path, **captions))


def test_a_text_file_in_another_encoding(tmp_path: Path, picture) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("Füße".encode("latin-1"))
    assert "a.txt is not UTF-8 text" in refused(str(tmp_path))


def test_folders_that_hold_something_else(tmp_path: Path, picture, class_folders) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refused(str(tmp_path / "empty"))
    root = class_folders(tmp_path / "mixed", old=2)
    picture(tmp_path / "mixed" / "new.png")
    assert "holds both images (new.png) and folders of images (old/0.png)" in refused(root)
    assert "images with masks" in refused(class_folders(tmp_path / "masked", images=1, masks=1))
    root = class_folders(tmp_path / "twice", train=1, training=1)
    assert "two train folders, train and training" in refused(root)


def test_a_folder_that_cannot_be_opened_is_not_one_of_captions(tmp_path: Path, monkeypatch) -> None:
    def denied(folder: str) -> list[str]:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "listdir", denied)
    assert not is_captioned(str(tmp_path))
