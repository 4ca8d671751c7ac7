"""Tables of images whose columns a task reads itself, and what classification makes of such columns."""

from pathlib import Path

import pytest

from snella.data.folders.tree import tree
from snella.data.readers.labelled import read_data
from snella.data.readers.tables import folder_table, manifest_table
from snella.errors import UserError
from support.downloads import lay, photos


def test_lists_of_splits_are_one_table(tmp_path: Path) -> None:
    files = {**photos("images", count=4), "train.csv": "Image,Size\n0,1.5\n1,2\n", "test.csv": "Image,Size\n2,\n"}
    found = folder_table(tree(lay(tmp_path / "data", files)))
    assert found is not None
    assert found.columns == ("Size",)
    assert [(row.image, row.split, dict(row.cells)) for row in found.rows] == [
        ("images/0.jpg", "train", {"Size": "1.5"}),
        ("images/1.jpg", "train", {"Size": "2"}),
        ("images/2.jpg", "test", {"Size": ""}),
    ]
    assert "1 image that no table names left out: images/3.jpg" in found.notes[-1]


def test_columns_are_named_by_title_or_number(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("path,Set,Size,Weight\na,train,1,2\nb,test,3,4\n")
    table = manifest_table(str(path))
    assert table.columns == ("Size", "Weight")
    assert table.splits() == {"a": "train", "b": "test"}
    assert table.named("weight,2", "--x") == ["Weight", "Size"]
    for asked, said in (("0", "--x 0: "), ("size,colour", "--x colour: "), ("size,2", "names a column twice")):
        with pytest.raises(UserError, match=said):
            table.named(asked, "--x")


def test_columns_of_0_and_1_beside_class_folders_are_left_out_or_join_to_the_classes(tmp_path: Path) -> None:
    pets = photos("cat", "dog", count=6)
    rows = [f"{name},1,{i % 2}" for i, name in enumerate(pets)]
    data = read_data(lay(tmp_path / "other", {**pets, "labels.csv": "\n".join(["file,old,ill", *rows])}), seed=0)
    assert data.classes == ("cat", "dog")
    assert any("left out: " in note and "--task multilabel" in note for note in data.notes)
    rows = [f"{name},{int('cat' in name)},{int('dog' in name)}" for name in pets]
    lone = {f"all/{name.replace('/', '-')}": content for name, content in pets.items()}
    sheet = "\n".join(["file,Cat,Dog", *(row.replace("/", "-") for row in rows)])
    assert read_data(lay(tmp_path / "same", {**lone, "labels.csv": sheet}), seed=0).classes == ("Cat", "Dog")
