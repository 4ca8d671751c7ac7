"""Data sets as people download them: each tree of files is read rightly with no flag, or refused with what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snella.data.folders.choices import NO_CHOICE, Choices
from snella.data.readers.labelled import read_data, read_test_data
from snella.errors import UserError
from support.downloads import Files, lay, photos

PETS = ("cat", "dog")
SIX = range(6)


def sheet(head: str, *rows: str) -> str:
    return "\n".join((head, *rows)) + "\n"


def stop(data: str, choices: Choices = NO_CHOICE) -> str:
    with pytest.raises(UserError) as caught:
        read_data(data, seed=0, choices=choices)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sizes(data) -> dict[str, int]:
    return {split: len(images) for split, images in data.splits.items()}


# name: files; the class of an image of that path is its part that is one. What a note or the layout says.
BY_FOLDER: dict[str, tuple[Files, str]] = {
    "a wrapper above": (photos("set/cat", "set/dog"), "the images are in set"),
    "two wrappers above": (photos("a/b/cat", "a/b/dog"), "the images are in a/b"),
    "a wrapper below": (photos("cat/Imgs", "dog/Imgs"), "no classes: Imgs"),
    "wrappers of several names below": (photos("cat/images", "dog/photos"), "no classes: images, photos"),
    "images below their class": ({**photos("cat", "dog"), **photos("cat/old")}, "belong to their class: cat/old"),
    "split folders twice": (
        photos("seg_train/seg_train/cat", "seg_train/seg_train/dog", "seg_test/seg_test/cat", "seg_pred/seg_pred"),
        "folders beside the splits, left out: seg_pred/seg_pred (8 images)",
    ),
    "splits in other words": (
        photos("training_set/cat", "training_set/dog", "test_set/cat", "test_set/dog"),
        "image folder with splits",
    ),
    "eval beside test": (photos(*(f"{s}/{c}" for s in ("train", "eval", "test") for c in PETS)), "with splits"),
    "splits below classes": (photos("cat/train", "cat/test", "dog/train", "dog/test"), "below the class folders"),
    "a sheet that says the same": (
        {
            **photos("cat", "dog", count=6),
            "labels.csv": sheet("file,class", *(f"{c}/{i}.jpg,{c}" for c in PETS for i in SIX)),
        },
        "image folder",
    ),
    "masks of the same name": (
        {f"{c}/{i}.{e}": None if e == "jpg" else (0, 0, 255) for c in PETS for i in SIX for e in ("jpg", "png")},
        "12 masks beside the images left out",
    ),
    "masks of longer names": (
        {f"{c}/{i}{e}.png": (0, 0, 1) if e else None for c in PETS for i in SIX for e in ("", "_mask")},
        "12 masks beside the images left out",
    ),
    "masks that are no masks by their pixels": (
        {f"{c}/{e}.png": None for c in PETS for i in SIX for e in (i, f"{i}_gt")},
        "12 masks beside the images left out",
    ),
    "masks named before": (
        {f"{c}/{e}{i}.png": (0, 1) if e else None for c in PETS for i in SIX for e in ("", "mask_")},
        "12 masks beside the images left out",
    ),
    "several masks of an image": (
        {f"{c}/{c} ({i}){e}.png": (0, 255) if e else None for c in PETS for i in SIX for e in ("", "_mask", "_mask_1")},
        "24 masks beside the images left out",
    ),
    "masks in a folder beside": (
        {
            f"{c}/{k}/{i}.png": None if k == "images" else (0, 255)
            for c in PETS
            for i in SIX
            for k in ("images", "masks")
        },
        "12 masks beside the images left out",
    ),
    "classes in names": (
        {**{f"train/{c}.{i}.jpg": None for c in PETS for i in SIX}, **photos("test1")},
        "folders of images without labels, left out: test1 (8 images)",
    ),
    "classes in names, folders twice": (
        {**{f"pets/train/train/{c}.{i}.jpg": None for c in PETS for i in SIX}, **photos("pets/test1/test1")},
        "left out: test1/test1 (8 images)",
    ),
    "classes in names without a folder": (
        {f"{c}.{i}.jpg": None for c in PETS for i in SIX},
        "images named after their class",
    ),
    "lists of splits": (
        {
            **photos("images/cat", "images/dog", count=6),
            "meta/train.txt": sheet(*(f"{c}/{i}" for c in PETS for i in range(4))),
            "meta/test.txt": "cat/4\ndog/4\n",
            "meta/classes.txt": "cat\ndog\n",
        },
        "2 images that no list names left out",
    ),
    "the files of CUB-200": (
        {
            **photos("images/cat", "images/dog"),
            "images.txt": sheet(*(f"{8 * k + i + 1} {c}/{i}.jpg" for k, c in enumerate(PETS) for i in range(8))),
            "image_class_labels.txt": sheet(*(f"{8 * k + i + 1} {k + 1}" for k in (0, 1) for i in range(8))),
            "train_test_split.txt": sheet(*(f"{8 * k + i + 1} {int(i < 6)}" for k in (0, 1) for i in range(8))),
            "classes.txt": "1 cat\n2 dog\n",
        },
        "with the splits of train_test_split.txt",
    ),
    "a sheet of one split": (
        {
            **photos(*(f"{s}/{c}" for s in ("train", "test") for c in PETS)),
            "train.csv": sheet("file,label", *(f"train/{c}/{i}.jpg,{c}" for c in PETS for i in range(8))),
        },
        "image folder with splits",
    ),
    "a sheet that says other things": (
        {**photos("cat", "dog"), "a.csv": sheet("file,age,sex", *(f"{c}/{i}.jpg,{i},x" for c in PETS for i in SIX))},
        "a.csv has several columns that may be labels",
    ),
    "a folder of texts beside": (
        {**photos("cat", "dog"), "notes/a.txt": ""},
        "folders without images, left out: notes",
    ),
    "what systems and programs leave": (
        {
            **photos("cat", "dog"),
            **photos("cat/@eaDir/0.jpg", "dog/.ipynb_checkpoints", "__MACOSX/cat", ".thumbnails", count=2),
            **dict.fromkeys(("Thumbs.db", "cat/Thumbs.db", "cat/._0.jpg", "cat/x.psd", "dog/clip.mp4"), ""),
        },
        "files of formats that are not read, left out: .psd (1), .mp4 (1)",
    ),
    "runs inside": (
        {
            **photos("cat", "dog"),
            **photos("runs/first", "out"),
            **dict.fromkeys(("runs/first/config.yaml", "runs/first/adapter/snella.json", "out/config.yaml"), "{}"),
            "out/summary.json": "{}",
        },
        "folders that snella wrote, left out: out, runs/first",
    ),
    "rarer endings": (
        {f"{c}/{i}.{e}": None for c in PETS for i, e in enumerate(("jfif", "jpe", "tga", "jpg"))},
        "image folder",
    ),
}


@pytest.mark.parametrize("name", BY_FOLDER)
def test_classes_by_folders(tmp_path: Path, name: str) -> None:
    files, said = BY_FOLDER[name]
    data = read_data(lay(tmp_path, files), seed=0)
    assert data.classes == PETS
    assert said in "\n".join((data.layout, *data.notes))
    found = [name for images in data.splits.values() for name in zip(images.paths, images.labels, strict=True)]
    assert len(found) == len(dict(found))
    for path, label in found:
        inside = os.path.relpath(path, tmp_path)
        words = inside.replace(".", "/").replace(" ", "/").split("/")
        assert next(word for word in words if word in PETS) == PETS[label]
        assert not {"masks", "@eaDir", "runs", "out", "test1", "seg_pred"} & set(words)
        assert not Path(path).stem.endswith(("_mask", "_mask_1", "_gt"))
        assert not Path(path).stem.startswith("mask")
        assert Path(path).suffix != ".png" or name != "masks of the same name"


def test_what_systems_leave_is_counted(tmp_path: Path) -> None:
    files, _ = BY_FOLDER["what systems and programs leave"]
    notes = "\n".join(read_data(lay(tmp_path, files), seed=0).notes)
    for place in (
        "@eaDir (2)",
        ".ipynb_checkpoints (2)",
        "__MACOSX (2)",
        "files beginning with a dot (1)",
        "Thumbs.db (2)",
    ):
        assert place in notes


def test_eval_is_val_beside_a_test_split(tmp_path: Path) -> None:
    data = read_data(lay(tmp_path, BY_FOLDER["eval beside test"][0]), seed=0)
    assert {Path(path).parts[-3] for path in data.splits["val"].paths} == {"eval"}
    assert {Path(path).parts[-3] for path in data.splits["test"].paths} == {"test"}


# name: files, classes, what is said; the image of an even number is of the first class, of an odd one of the second
BY_LIST: dict[str, tuple[Files, tuple[str, str], str]] = {
    "a sheet beside batches": (
        {
            **photos("batch1", "batch2"),
            "metadata.csv": sheet("file_name,label", *(f"batch{b}/{i}.jpg,{PETS[i % 2]}" for b in (1, 2) for i in SIX)),
        },
        PETS,
        "images listed in metadata.csv",
    ),
    "a sheet of numbers, and images without labels": (
        {
            **photos("train"),
            **photos("test", count=2, first=90),
            "labels.csv": sheet("id,breed", *(f"{i},{PETS[i % 2]}" for i in range(8))),
        },
        PETS,
        "2 images that no list names left out",
    ),
    "a sheet with semicolons": (
        {
            **photos("images"),
            "labels.csv": sheet("\ufefffile;label;n", *(f"{i}.jpg;{PETS[i % 2]};{i}" for i in range(8))),
        },
        PETS,
        "the labels are column label",
    ),
    "a list with the label first": (
        {**photos("imgs"), "labels.txt": sheet(*(f"{PETS[i % 2]} imgs/{i}.jpg" for i in range(8)))},
        PETS,
        "images listed in labels.txt",
    ),
    "sheets of splits": (
        {
            **photos("train", "test"),
            "train.csv": sheet("image,class", *(f"{i}.jpg,{PETS[i % 2]}" for i in range(8))),
            "test.csv": sheet("image,class", *(f"{i}.jpg,{PETS[i % 2]}" for i in range(8))),
        },
        PETS,
        "images listed in train.csv, test.csv",
    ),
    "lines of JSON": (
        {
            **photos("images"),
            "a.jsonl": sheet(*(f'{{"image": "images/{i}.jpg", "label": "{PETS[i % 2]}"}}' for i in range(8))),
        },
        PETS,
        "images listed in a.jsonl",
    ),
    "lists with tabs": (
        {**photos("images"), **{f"{s}.txt": sheet(*(f"images/{i}.jpg\t{PETS[i % 2]}" for i in range(k, k + 2)))
                                for k, s in enumerate(("train", "val", "test"))}},
        PETS,
        "images listed in train.txt, val.txt, test.txt",
    ),
    "a list without endings, with labels of two words": (
        {**photos("data/images"), "train_list.txt": sheet(*(f"{i} {('big cat', 'dog')[i % 2]}" for i in range(8)))},
        ("big cat", "dog"),
        "images listed in train_list.txt",
    ),
    "several columns, the first the finest, with names": (
        {
            **photos("images"),
            "train.txt": sheet(*(f"images/{i}.jpg, {i % 2}, 0" for i in range(8))),
            "classes.csv": sheet("Class Name (str),Class ID (int),Icon Path (str)", "cat,0,/c.jpg", "dog,1,/d.jpg"),
        },
        PETS,
        "names of the classes from classes.csv",
    ),
    "a column of subsets": (
        {
            **photos("all"),
            "data.csv": sheet("file_name,label,subset", *(
                f"all/{i}.jpg,{PETS[i % 2]},{('train', 'valid', 'test')[i // 2]}" for i in SIX)),
        },
        PETS,
        "the labels are column label",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_LIST)
def test_classes_by_lists(tmp_path: Path, name: str) -> None:
    files, classes, said = BY_LIST[name]
    data = read_data(lay(tmp_path, files), seed=0)
    assert data.classes == classes
    assert said in "\n".join((data.layout, *data.notes))
    for split, images in data.splits.items():
        for path, label in zip(images.paths, images.labels, strict=True):
            assert label == int(Path(path).stem) % 2
            assert "test" not in (split, Path(path).parts[-2]) or name != "sheets of splits" or split == "test"


def test_lists_of_splits_are_the_splits(tmp_path: Path) -> None:
    data = read_data(lay(tmp_path / "a", BY_FOLDER["lists of splits"][0]), seed=0)
    assert sorted(os.path.basename(path) for path in data.splits["test"].paths) == ["4.jpg", "4.jpg"]
    data = read_data(lay(tmp_path / "c", BY_FOLDER["the files of CUB-200"][0]), seed=0)
    assert sorted(os.path.basename(path) for path in data.splits["test"].paths) == ["6.jpg", "6.jpg", "7.jpg", "7.jpg"]
    data = read_data(lay(tmp_path / "b", BY_LIST["a column of subsets"][0]), seed=0)
    assert sizes(data) == {"train": 2, "val": 2, "test": 2}


STOPS: dict[str, tuple[Files, tuple[str, ...]]] = {
    "examples beside": (photos("Set/0", "Set/1", "Set/2", "Examples"), ("3 classes in Set", "give", "--classes top")),
    "nested": (photos("fruit/apple", "fruit/pear", "milk/oat"), ("--classes top (2 c", "leaf (3 c", "path (3 c")),
    "the same folders in each": (photos("p1/good", "p1/bad", "p2/good", "p2/bad"), ("--classes top", "--classes leaf")),
    "parts of a set, and a table of several columns": (
        {
            **photos("part_1", "part_2", count=6),
            "meta.csv": sheet("image,dx,age", *(f"part_{k}/{i}.jpg,{PETS[i % 2]},{i}" for k in (1, 2) for i in SIX)),
        },
        ("two readings", "--classes top", "meta.csv has several columns that may be labels", "--label-column"),
    ),
    "a vehicle or a split": (photos("bus", "train"), ("two readings", "--classes top")),
    "a folder without labels beside": (photos("cat", "dog", "unlabeled"), ("unlabeled is a split", "move it away")),
    "splits alone": (photos("training", "validation"), ("has no class folders",)),
    "a split and what has no labels": (photos("train", "unlabeled"), ("has no class folders",)),
    "names of a train split": (
        {f"train/{c}_{i}.jpg": None for c in PETS for i in SIX},
        ("beginnings of the names (cat, dog)", "--classes names"),
    ),
    "a sheet that says otherwise": (
        {**photos("cat", "dog"), "labels.csv": sheet("file_name,label", *(
            f"{c}/{i}.jpg,{'ab'[i % 2]}" for c in PETS for i in range(8)))},
        ("2 classes (a, b)", "2 classes (cat, dog)", "--label-column label", "--classes top"),
    ),
    "labels of several classes": (
        {**photos("img"), "a.csv": sheet("image,labels", *(f"{i}.jpg,{(*PETS, 'cat dog')[i % 3]}" for i in SIX))},
        ("the label 'cat dog' is a class, or means 2 classes of one image", "--label-column labels"),
    ),
    "lists of several kinds of class": (
        {**photos("images"), **{f"images_{k}_train.txt": sheet(*(f"{i} {k} {i % 2}" for i in range(8))) for k in PETS}},
        ("lists of the train split are images_cat_train.txt, images_dog_train.txt",),
    ),
    "a class in a format that is not read": ({**photos("cat", "dog"), "ape/0.dcm": ""}, ("ape holds no image",)),
    "images of no class": (photos("JPEGImages"), ("8 images in JPEGImages but no class folders",)),
    "a sheet of boxes": (
        {**photos("img"), "a.csv": sheet("file,class,xmin,ymin,xmax,ymax", *(f"{i}.jpg,cat,1,2,9,9" for i in SIX))},
        ("a.csv has boxes", "--label-column"),
    ),
    "masks in a folder of any name": (
        {f"{k}/{i}.png": None if k == "a" else (0, 1) for k in ("a", "b") for i in SIX},
        ("holds images with masks; add --task segment", "--classes top"),
    ),
    "two columns": (
        {**photos("images"), "train.txt": sheet(*(f"images/{i}.jpg {i % 2} {i % 3}" for i in range(8)))},
        ("1 (2 values), 2 (3 values)", "--label-column"),
    ),
    "two labels of an image": (
        {**photos("images"), "labels.csv": sheet("path,label", "images/0.jpg,a", "images/0.jpg,b", "images/1.jpg,a")},
        ("images/0.jpg has two labels, a and b",),
    ),
    "images and masks": (
        {f"{k}/{i}.png": None if k == "img" else (0, 1) for k in ("img", "gt") for i in SIX},
        ("--task segment",),
    ),
    "masks beside images without classes": (
        {f"{i}{e}.png": (0, 1) if e else None for i in SIX for e in ("", "_seg")},
        ("--task segment",),
    ),
    "one name, sometimes a mask": (
        {f"{c}/{i}.{e}": None if e == "jpg" or i else (0, 1) for c in PETS for i in SIX for e in ("jpg", "png")},
        ("two readings: images and their masks, or images all",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STOPS)
def test_what_has_several_readings_stops(tmp_path: Path, name: str) -> None:
    files, said = STOPS[name]
    text = stop(lay(tmp_path, files))
    assert [part for part in said if part not in text] == [], text


def test_classes_may_be_called_as_masks_are(tmp_path: Path) -> None:
    for names in (("x", "y"), ("with_mask", "without_mask"), ("input", "target")):
        assert read_data(lay(tmp_path / names[0], photos(*names)), seed=0).classes == names


def test_a_choice_that_does_not_apply_is_refused_but_for_tests(tmp_path: Path) -> None:
    root = lay(tmp_path, photos("cat", "dog"))
    for choices in (Choices(label_column="label"), Choices(crops=True)):
        assert "leave it out" in stop(root, choices)
        assert sizes(read_test_data(root, PETS, seed=0, choices=choices)) == {"test": 16}


def test_a_stop_is_left_by_what_it_says(tmp_path: Path) -> None:
    nested = lay(tmp_path / "nested", STOPS["nested"][0])
    assert read_data(nested, seed=0, choices=Choices("top")).classes == ("fruit", "milk")
    assert read_data(nested, seed=0, choices=Choices("leaf")).classes == ("apple", "oat", "pear")
    assert read_data(nested, seed=0, choices=Choices("path")).classes == ("fruit/apple", "fruit/pear", "milk/oat")
    beside = lay(tmp_path / "beside", STOPS["examples beside"][0])
    assert read_data(beside, seed=0, choices=Choices("top")).classes == ("Examples", "Set")
    assert read_data(f"{beside}/Set", seed=0).classes == ("0", "1", "2")
    sheets = lay(tmp_path / "sheets", STOPS["a sheet that says otherwise"][0])
    assert read_data(sheets, seed=0, choices=Choices("top")).classes == PETS
    assert read_data(sheets, seed=0, choices=Choices(label_column="label")).classes == ("a", "b")
    columns = lay(tmp_path / "columns", STOPS["two columns"][0])
    assert read_data(columns, seed=0, choices=Choices(label_column="2")).classes == ("0", "1", "2")
    named = lay(tmp_path / "named", STOPS["names of a train split"][0])
    assert read_data(named, seed=0, choices=Choices("names")).classes == PETS
