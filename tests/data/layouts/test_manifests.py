from __future__ import annotations

import json
from pathlib import Path

import pytest

from snella.data.folders.choices import Choices
from snella.data.layouts.manifests import manifest
from snella.errors import UserError


def write(folder: Path, text: str | bytes, name: str = "m.csv") -> str:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


@pytest.mark.parametrize("image", ["path", "image", "file_name"])
@pytest.mark.parametrize("label", ["label", "class"])
def test_csv_and_jsonl_read_alike(tmp_path: Path, image: str, label: str) -> None:
    csv = write(tmp_path, f"{image},{label},note\nx/a.png,dog,1\nb.png,cat,\n")
    rows = [{image: "x/a.png", label: "dog"}, {image: "b.png", label: "cat"}]
    jsonl = write(tmp_path, "\n".join(map(json.dumps, rows)) + "\n\n", "m.jsonl")
    for path in (csv, jsonl):
        listing = manifest(path)
        assert listing.classes == ("cat", "dog")
        assert listing.splits == {"all": [("x/a.png", 1), ("b.png", 0)]}
        assert listing.images("all").paths[0] == str(tmp_path / "x" / "a.png")


def test_spreadsheet_csv_is_read(tmp_path: Path) -> None:
    text = '\ufeffPath, Label\r\n"a, b.png",2\r\n\r\nc.png,10\r\n'
    listing = manifest(write(tmp_path, text))
    assert listing.classes == ("2", "10")
    assert listing.splits["all"] == [("a, b.png", 0), ("c.png", 1)]


def test_whole_number_labels_in_jsonl(tmp_path: Path) -> None:
    text = '{"image": "a", "label": 10}\n{"image": "b", "label": 9}\n'
    assert manifest(write(tmp_path, text, "m.jsonl")).classes == ("9", "10")


def test_the_split_column(tmp_path: Path) -> None:
    text = "path,label,split\na,x,train\nb,y,Validation\nc,x,test\n"
    assert manifest(write(tmp_path, text)).splits == {"train": [("a", 0)], "val": [("b", 1)], "test": [("c", 0)]}


@pytest.mark.parametrize("column", ["subset", "fold", "set"])
def test_other_names_of_the_split_column(tmp_path: Path, column: str) -> None:
    text = f"path,label,{column}\na,x,train\nb,y,valid\nc,x,test\n"
    assert manifest(write(tmp_path, text)).splits == {"train": [("a", 0)], "val": [("b", 1)], "test": [("c", 0)]}
    assert manifest(write(tmp_path, text.replace("valid", "3"))).splits.keys() == {"all"}


def test_the_label_column_may_be_named(tmp_path: Path) -> None:
    path = write(tmp_path, "path,Breed,label\na,pug,dog\nb,manx,cat\n")
    assert manifest(path).classes == ("cat", "dog")
    assert manifest(path, Choices(label_column="Breed")).classes == ("manx", "pug")
    assert manifest(path, Choices(label_column="1")).classes == ("manx", "pug")
    with pytest.raises(UserError, match="has the columns path, breed, label; name one"):
        manifest(path, Choices(label_column="kind"))


def test_absolute_paths_stay(tmp_path: Path) -> None:
    listing = manifest(write(tmp_path, "path,label\n/data/a.png,x\nb.png,y\n"))
    assert listing.images("all").paths == ("/data/a.png", str(tmp_path / "b.png"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no rows"),
        ("path,label\n", "no rows"),
        ("path,colour\na,x\n", "no column for the labels: name it label or class (found: path, colour)"),
        ("where,label\na,x\n", "no column for the image paths: name it path or image or file_name"),
        ("path,label,label\na,x,y\n", "two columns named 'label'"),
        ("path,image,label\na,b,x\n", "2 columns for the image paths: path, image"),
        ("path,label,class\na,x,y\n", "2 columns for the labels: label, class"),
        ("path;label\na;x\n", "commas"),
        ("path,label\na,x,y\n", "line 2: 3 values for 2 columns"),
        ("path,label\na,\n", "line 2: label is missing"),
        ("path,label\na,x\n,y\n", "line 3: path is missing"),
        ("path,label\na,x\nb,y\na,y\n", "line 4: a is already in line 2"),
        ("path,label\na,0\nb,-1\n", "line 3: label -1 is out of range"),
        ("path,label,split\na,x,train\nb,y,dust\n", "line 3: split is 'dust'"),
        ("path,label,split\na,x,train\nb,y,\n", "line 3: split is missing"),
        (b"path,label\n\xff\xfe,x\n", "UTF-8"),
        ('path,label\n"a,x\n', "not a CSV file"),
    ],
)
def test_a_faulty_csv_is_refused_with_the_place(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        manifest(path)
    assert str(caught.value).startswith(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"path": "a", "label": 1}\n{"path"\n', "line 2: not JSON"),
        ("[1]\n", "line 1: not an object"),
        ('{"path": "a", "label": 0.5}\n', "line 1: label is 0.5"),
        ('{"path": "a", "label": "x"}\n{"path": "b"}\n', "line 2: label is missing"),
    ],
)
def test_a_faulty_jsonl_is_refused_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        manifest(write(tmp_path, text, "m.jsonl"))
    assert said in str(caught.value)


def test_columns_of_0_and_1_are_classes_where_no_other_column_may_be(tmp_path: Path) -> None:
    path = write(tmp_path, "path,id,Cat,dog\na.png,x1,1,0\nb.png,x2,0,1\nc.png,x3,1,0\n")
    found = manifest(path)
    assert found.classes == ("Cat", "dog")
    assert found.splits == {"all": [("a.png", 0), ("b.png", 1), ("c.png", 0)]}
    path = write(tmp_path, "path,breed,male,female\na.png,pug,1,0\nb.png,pug,0,1\n")
    with pytest.raises(UserError, match="has no column for the labels"):
        manifest(path)
    path = write(tmp_path, "path,Cat,dog\na.png,1,0\nb.png,1,1\n")
    with pytest.raises(UserError, match=r"line 3: of the columns .* it has cat, dog, which is not one class"):
        manifest(path)
    path = write(tmp_path, "path,label\na.png,cat dog\nb.png,cat\nc.png,dog\n")
    with pytest.raises(UserError, match="two readings: the label 'cat dog' is a class, or means 2 classes"):
        manifest(path)
    assert manifest(path, Choices(label_column="label")).classes == ("cat", "cat dog", "dog")
