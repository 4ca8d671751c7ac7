"""Groups, split files and folds, as `read_data` and the other readers take them."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from snella.data.dataset import ImageData, name_in
from snella.data.readers.captioned import read_captioned_data
from snella.data.readers.division import splits_table
from snella.data.readers.labelled import read_data
from snella.data.readers.masked import read_masked_data
from snella.data.readers.suspicions import suspicions
from snella.data.splits import Division
from snella.errors import UserError


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten patients with two images of each of two classes, a table that says which is whose, and a manifest."""
    root = tmp_path_factory.mktemp("clinic") / "d"
    rows = ["image_id,patient"]
    for k in range(40):
        patient, label = f"P{k // 4:02d}", "ab"[k % 2]
        picture(root / label / f"{patient}-{k}.png", k)
        rows.append(f"{patient}-{k},{patient}")
    with_table = root.parent / "with_table"
    shutil.copytree(root, with_table)
    (with_table / "patients.csv").write_text("\n".join(rows))
    manifest = [f"d/{label}/{path.name},{label},{path.name[:3]}" for label in "ab" for path in (root / label).iterdir()]
    (root.parent / "m.csv").write_text("\n".join(["path,label,Patient", *manifest]))
    return root


def split_of_names(data: ImageData) -> dict[str, str]:
    return {name_in(data.root, path, data.folder): split for split, part in data.splits.items() for path in part.paths}


def read(data: Path, *, seed: int = 0, **division: object) -> ImageData:
    return read_data(str(data), seed=seed, division=Division(**division))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("data", "division"),
    [
        (".", {"group_pattern": r"P\d+"}),
        (".", {"group_pattern": r"/(P\d+)-"}),
        ("../with_table", {"group_column": "patient"}),
        ("../m.csv", {"group_column": "Patient"}),
        ("../m.csv", {"group_pattern": r"P\d+"}),
    ],
)
def test_all_images_of_a_group_are_in_one_split(clinic: Path, data: str, division: dict[str, Any]) -> None:
    found = read(clinic / data, **division)
    places = defaultdict(set)
    for name, split in split_of_names(found).items():
        places[name.split("/")[-1][:3]].add(split)
    assert all(len(splits) == 1 for splits in places.values())
    assert sorted(len(part) for part in found.splits.values()) in ([4, 8, 28], [4, 4, 32], [8, 8, 24])
    assert any(note.startswith("10 groups of 40 images by --group-") for note in found.notes)
    assert any("whole groups of 10, stratified by class as far as they allow, seed 0" in note for note in found.notes)
    assert suspicions(found, ["lookalikes"]) == []
    again = read(clinic / data, **division)
    assert split_of_names(found) == split_of_names(again)


def test_a_pattern_that_leaves_images_out_says_how_many(clinic: Path) -> None:
    found = read(clinic, group_pattern="P0[0-8]")
    (note,) = [note for note in found.notes if "group-pattern" in note]
    assert note.startswith(
        "9 groups of 36 images by --group-pattern P0[0-8], which leaves out 4 of 40, each a group of its own: a/P09-36"
    )
    with pytest.raises(
        UserError, match=r"--group-pattern 'patient' matches none of the 40 images, such as a/P00-0.png"
    ):
        read(clinic, group_pattern="patient")


def test_too_few_groups_are_a_line(clinic: Path) -> None:
    with pytest.raises(UserError, match=r"2 groups \(40 images of 2 classes\) are too few to take a val split out"):
        read(clinic, group_pattern="^.")
    with pytest.raises(UserError, match=r"1 group \(40 images of 2 classes\) are too few to take a val split out"):
        read(clinic, group_pattern="png")


def test_a_group_column_that_is_not_there_names_those_that_are(clinic: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--group-column slide: .*m.csv has the columns path, label, patient; name"):
        read(clinic.parent / "m.csv", group_column="slide")
    for name in ("a/1.png", "b/2.png"):
        picture(tmp_path / name)
    with pytest.raises(UserError, match=r"it holds no table \(.csv, .jsonl\)"):
        read(tmp_path, group_column="slide")
    (tmp_path / "patients.csv").write_text("image_id,patient,age\n1,P1,40\n2,P2,50")
    with pytest.raises(UserError, match=r"tables there have patients.csv: image_id, patient, age"):
        read(tmp_path, group_column="slide")


def test_a_group_in_two_published_splits_is_suspected(tmp_path: Path) -> None:
    for k, split in enumerate(("train", "train", "test", "val")):
        for label in "ab":
            picture(tmp_path / split / label / f"P{min(k, 1)}_{k}{label}.png", 2 * k + (label == "b"))
    found = read(tmp_path, group_pattern=r"P\d")
    (suspicion,) = suspicions(found, ["lookalikes"])
    assert (suspicion.kind, suspicion.text[:30]) == ("groups", "1 of 2 groups are in two split")
    assert "'P1' as" in suspicion.text
    assert suspicions(found, ["lookalikes", "groups"]) == []


def test_a_split_file_divides_the_images_and_is_the_same_everywhere(clinic: Path, tmp_path: Path) -> None:
    first = read(clinic, seed=3, group_pattern=r"P\d+")
    file = tmp_path / "splits.csv"
    file.write_text(splits_table(first))
    assert file.read_text().splitlines()[0] == "file,split,label"
    assert f"{clinic}" not in file.read_text()
    again = read(clinic, seed=0, file=str(file))
    assert {split: (part.paths, part.labels) for split, part in again.splits.items()} == {
        split: (part.paths, part.labels) for split, part in first.splits.items()
    }
    by_manifest = read(clinic.parent / "m.csv", file=str(file))
    assert split_of_names(by_manifest) == {f"d/{name}": split for name, split in split_of_names(first).items()}
    inside = clinic / "my splits.csv"
    inside.write_text(file.read_text())
    assert split_of_names(read(clinic, file=str(inside))) == split_of_names(first)
    inside.unlink()


def test_a_split_file_of_anyone(clinic: Path, tmp_path: Path) -> None:
    """Names with or without folders and endings, other names of columns and splits; what it lacks is taken of train."""
    names = [path.relative_to(clinic).as_posix() for path in sorted(clinic.glob("?/*.png"))]
    forms = [names[0].replace("/", "\\"), f"./{names[1]}", names[2].split("/")[1], names[3][:-4], f"x/{names[4]}"]
    rows = [*((form, "TESTING") for form in forms), *((name, "train") for name in names[5:-2])]
    file = tmp_path / "folds.csv"
    file.write_text("\n".join(["path,subset", *(",".join(row) for row in rows)]))
    found = read(clinic, file=str(file))
    splits = split_of_names(found)
    assert {name for name, split in splits.items() if split == "test"} == set(names[:5])
    assert len(found.splits["val"]) == 5
    assert splits.keys() == set(names[:-2])
    assert f"splits of {file}: train 33, test 5" in found.notes
    left_out = f"2 images that {file} does not name left out: {names[-2]}, {names[-1]}"
    assert left_out in found.notes


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            ["a/P00-0.png,train", "a/P00-0.png,test"],
            "1 image is in two splits, the first: a/P00-0.png in train",
        ),
        (
            ["a/P00-0.png,train", "gone.png,test", "b/gone.png,val"],
            "2 of its 3 rows name no image of .*gone.png; ",
        ),
        (["a/P00-0.png,fold1"], "line 2: split is 'fold1'; use train, val or test"),
        (["a/P00-0.png,"], "line 2: split is missing"),
        (["a/P00-0.png,test"], "has no image to train on"),
    ],
)
def test_a_split_file_with_a_fault_is_a_line(clinic: Path, tmp_path: Path, rows: list[str], said: str) -> None:
    file = tmp_path / "s.csv"
    file.write_text("\n".join(["file,split", *rows]))
    with pytest.raises(UserError, match=said):
        read(clinic, file=str(file))
    with pytest.raises(UserError, match="does not exist"):
        read(clinic, file=str(tmp_path / "none.csv"))
    with pytest.raises(UserError, match="is not a CSV or JSONL file"):
        read(clinic, file=str(clinic))


def test_a_name_of_several_images_is_refused(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png", "a/2.png", "b/3.png"):
        picture(tmp_path / name)
    (tmp_path / "s.jsonl").write_text('{"file": "1.png", "split": "train"}')
    with pytest.raises(UserError, match=r"1 name means several images, the first: 1.png \(a/1.png, b/1.png\)"):
        read(tmp_path, file=str(tmp_path / "s.jsonl"))


def test_every_image_is_tested_in_one_fold_and_trained_on_in_the_others(clinic: Path) -> None:
    folds = [read(clinic, group_pattern=r"P\d+", folds=5, fold=k) for k in range(1, 6)]
    tested = [name for fold in folds for name, split in split_of_names(fold).items() if split == "test"]
    assert sorted(tested) == sorted(path.relative_to(clinic).as_posix() for path in clinic.glob("?/*.png"))
    for fold in folds:
        places = defaultdict(set)
        for name, split in split_of_names(fold).items():
            places[name.split("/")[-1][:3]].add(split)
        assert all(len(splits) == 1 for splits in places.values())
        assert {split: len(part) for split, part in fold.splits.items()} == {"train": 28, "val": 4, "test": 8}
    assert "fold 2 of 5 is the test split: 8 of the 40 images, by groups, seed 0" in folds[1].notes


def test_folds_leave_a_published_test_split_alone(tmp_path: Path) -> None:
    for split, count in (("train", 8), ("val", 4), ("test", 3)):
        for k in range(2 * count):
            picture(tmp_path / split / "ab"[k % 2] / f"{split}{k}.png", k)
    found = read(tmp_path, folds=3, fold=1)
    assert not any("test/" in name for name in split_of_names(found))
    assert {split: len(part) for split, part in found.splits.items()} == {"train": 14, "val": 2, "test": 8}
    note = "fold 1 of 3 is the test split: 8 of the 24 images of train and val; the data's own test split (6 images) is"
    assert any(line.startswith(note) for line in found.notes)


def test_a_class_that_one_fold_holds_is_refused(tmp_path: Path) -> None:
    for k in range(9):
        picture(tmp_path / ("a" if k < 8 else "b") / f"{k}.png", k)
    with pytest.raises(UserError, match="class 'b' is of one image, or all of it fell into one of the 3 folds"):
        read(tmp_path, folds=3, fold=1)


def test_masks_and_captions_are_divided_alike(tmp_path: Path) -> None:
    for k in range(12):
        picture(tmp_path / "m" / "images" / f"P{k // 2}_{k}.png", k)
        mask = np.zeros((8, 8), np.uint8)
        mask[:4] = 1
        (tmp_path / "m" / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "m" / "masks" / f"P{k // 2}_{k}.png")
    data, groups = str(tmp_path / "m"), Division(group_pattern=r"P\d+")
    found = read_masked_data(data, seed=0, division=groups)
    names = split_of_names(found)
    assert len({(name.split("/")[1][:2], split) for name, split in names.items()}) == 6
    assert set(found.groups.values()) == {f"P{k}" for k in range(6)}
    file = tmp_path / "splits.csv"
    file.write_text(splits_table(found))
    assert file.read_text().splitlines()[0] == "file,split"
    assert split_of_names(read_masked_data(data, seed=1, division=Division(file=str(file)))) == names
    tested = [
        name
        for k in (1, 2, 3)
        for name, split in split_of_names(
            read_masked_data(data, seed=0, division=Division(group_pattern=r"P\d+", folds=3, fold=k))
        ).items()
        if split == "test"
    ]
    assert sorted(tested) == sorted(names)
    images = read_captioned_data(str(tmp_path / "m" / "images"), seed=0, division=groups)
    assert len({(name[:2], split) for name, split in split_of_names(images).items()}) == 6
