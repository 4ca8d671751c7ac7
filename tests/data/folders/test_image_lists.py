"""Lists of images and their splits: several of a kind, tables of splits, titles that lack, boxes among tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from snella.data.folders.choices import Choices
from snella.data.folders.names import splits_among
from snella.data.readers.labelled import read_data
from snella.errors import UserError
from snella.tasks.multilabel.listing import lister
from snella.tasks.regression.listing import lister as numbers_lister
from support.downloads import Files, lay, photos

PETS = ("cat", "dog")
CELEBA: Files = {
    **photos("img_align_celeba", count=12),
    "list_eval_partition.txt": "".join(f"{i}.jpg {0 if i < 6 else 1 if i < 9 else 2}\n" for i in range(12)),
    "list_attr_celeba.txt": "12\nBald Smiling Young \n"
    + "".join(
        f"{i}.jpg {' 1' if i % 2 else '-1'}  {' 1' if i % 3 else '-1'} {1 if i % 4 else -1}\n" for i in range(12)
    ),
    "list_bbox_celeba.txt": "12\nimage_id x_1 y_1 width height\n" + "".join(f"{i}.jpg 1 2 3 {i}\n" for i in range(12)),
    "list_landmarks_align_celeba.txt": "12\nlefteye_x lefteye_y \n" + "".join(f"{i}.jpg {i} 9\n" for i in range(12)),
}
KAGGLE: Files = {
    **photos("img_align_celeba/img_align_celeba", count=12),
    "list_eval_partition.csv": "image_id,partition\n"
    + "".join(f"{i}.jpg,{0 if i < 6 else 1 if i < 9 else 2}\n" for i in range(12)),
    "list_attr_celeba.csv": "image_id,Bald,Smiling,Young\n"
    + "".join(f"{i}.jpg,{1 if i % 2 else -1},{1 if i % 3 else -1},{1 if i % 4 else -1}\n" for i in range(12)),
    "list_bbox_celeba.csv": "image_id,x_1,y_1,width,height\n" + "".join(f"{i}.jpg,1,2,3,{i}\n" for i in range(12)),
}


@pytest.mark.parametrize("files", [CELEBA, KAGGLE], ids=["as published", "of Kaggle"])
def test_celeba_is_labels_of_1_and_minus_1_with_its_partition(tmp_path: Path, files: Files) -> None:
    data = read_data(lay(tmp_path, files), seed=0, lister=lister(None))
    assert data.classes == ("Bald", "Smiling", "Young")
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 6, "val": 3, "test": 3}
    for split, numbers in (("train", range(6)), ("val", range(6, 9)), ("test", range(9, 12))):
        images = data.splits[split]
        found = {int(Path(path).stem): row for path, row in zip(images.paths, images.targets, strict=True)}
        assert found == {i: (float(i % 2 == 1), float(i % 3 > 0), float(i % 4 > 0)) for i in numbers}
    with pytest.raises(UserError, match=r"not one class; add --task multilabel"):
        read_data(str(tmp_path), seed=0)
    smiling = read_data(str(tmp_path), seed=0, choices=Choices(label_column="smiling"))
    assert (smiling.classes, len(smiling.splits["test"])) == (("0", "1"), 3)


def test_minus_1_beside_0_stays_what_it_is(tmp_path: Path) -> None:
    """As in CheXpert, whose 0 is no and whose -1 is unsure."""
    rows = "".join(f"{i}.jpg,{i % 3 - 1},{i % 2}\n" for i in range(12))
    root = lay(tmp_path, {**photos("images", count=12), "labels.csv": f"image,a,b\n{rows}"})
    with pytest.raises(UserError, match="'-1'"):
        read_data(root, seed=0, lister=lister(None), choices=Choices(label_column="a,b"))


def test_lists_of_splits_divide_a_table_of_all(tmp_path: Path) -> None:
    """As NIH's chest X-rays have it."""
    files = {
        **photos("images", count=10),
        "Data_Entry.csv": "Image Index,Finding Labels\n" + "".join(f"{i}.jpg,{PETS[i % 2]}\n" for i in range(10)),
        "train_val_list.txt": "".join(f"{i}.jpg\n" for i in range(6)),
        "test_list.txt": "".join(f"{i}.jpg\n" for i in range(6, 9)),
    }
    data = read_data(lay(tmp_path, files), seed=0)
    assert data.layout == "images listed in Data_Entry.csv, train_val_list.txt, test_list.txt"
    assert sorted(Path(path).stem for path in data.splits["test"].paths) == ["6", "7", "8"]
    assert "1 image that no list names left out: images/9.jpg" in data.notes
    boxes = {"BBox_List.csv": "Image Index,Finding Label,Bbox [x,y,w,h]\n0.jpg,cat,1,2,3,4\n1.jpg,dog,1,2,3,4\n"}
    assert read_data(lay(tmp_path, boxes), seed=0).layout == data.layout
    numbers = {**files, "Data_Entry.csv": "Image,Age\n" + "".join(f"{i}.jpg,{i % 5}\n" for i in range(10))}
    data = read_data(lay(tmp_path / "b", numbers), seed=0, lister=numbers_lister(None))
    assert sorted(data.splits["test"].targets) == [(1.0,), (2.0,), (3.0,)]


def divided(folder: str, k: int, first: int) -> dict[str, object]:
    """Return two lists of class folders of 9 images, whose test images begin with the first."""
    test = {(first + i) % 9 for i in range(3)}
    return {
        f"{folder}/{split}{k}.txt": "".join(f"{c}/{i}.jpg\n" for c in PETS for i in range(9) if (i in test) == held)
        for split, held in (("train", False), ("test", True))
    }


def test_lists_below_what_wraps_all_are_read(tmp_path: Path) -> None:
    """As in food-101/meta/train.txt."""
    root = lay(tmp_path, {**photos("set/images/cat", "set/images/dog", count=9), **divided("set/meta", 1, 0)})
    data = read_data(root, seed=0)
    assert "with the splits of set/meta/train1.txt, set/meta/test1.txt" in data.layout
    assert {Path(path).stem for path in data.splits["test"].paths} == {"0", "1", "2"}


def test_several_published_splits_stop(tmp_path: Path) -> None:
    """As in DTD's and SUN397's ten."""
    files = {**photos("images/cat", "images/dog", count=9), **divided("labels", 1, 0), **divided("labels", 2, 3)}
    with pytest.raises(UserError, match=r"2 readings: lists of the train split are labels/train1.txt, labels/train2"):
        read_data(lay(tmp_path, files), seed=0)


def test_an_image_in_two_lists_stops(tmp_path: Path) -> None:
    files = {**photos("images/cat", "images/dog", count=9), **divided("labels", 1, 0)}
    files["labels/val.txt"] = "cat/0.jpg\ndog/5.jpg\n"
    with pytest.raises(UserError, match=r"is in labels/\w+.txt and in labels/\w+.txt; keep it in one"):
        read_data(lay(tmp_path, files), seed=0)


def test_lists_of_splits_hold_for_a_choice_of_classes_too(tmp_path: Path) -> None:
    """As in SUN397, whose classes are nested."""
    files = {**photos("set/a/abbey", "set/b/bank/inside"), **photos("set/b/bank/outside")}
    files |= {
        "Training_01.txt": "".join(f"/{f}/{i}.jpg\n" for f in ("a/abbey", "b/bank/inside") for i in range(6)),
        "Testing_01.txt": "".join(f"/{f}/{i}.jpg\n" for f in ("a/abbey", "b/bank/inside") for i in range(6, 8)),
    }
    data = read_data(lay(tmp_path, files), seed=0, choices=Choices(classes="top"))
    assert (data.classes, len(data.splits["test"])) == (("a", "b"), 4)


IMAGENET: Files = {
    **{f"top/train/n0{c}/images/n0{c}_{i}.JPEG": None for c in range(3) for i in range(6)},
    **{f"top/train/n0{c}/n0{c}_boxes.txt": f"n0{c}_0.JPEG\t0\t10\t63\t58\n" for c in range(3)},
    **{f"top/val/images/val_{i}.JPEG": None for i in range(6)},
    **{f"top/test/images/test_{i}.JPEG": None for i in range(4)},
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("top/val/val_annotations.txt", "".join(f"val_{i}.JPEG\tn0{i % 3}\t0\t32\t44\t62\n" for i in range(6))),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\n" + "".join(f"val_{i},n0{i % 3} 1 2 3 {i} \n" for i in range(6)),
        ),
    ],
    ids=["Tiny ImageNet", "Kaggle's ImageNet"],
)
def test_imagenet_trains_by_folders_and_validates_by_its_list(tmp_path: Path, name: str, text: str) -> None:
    data = read_data(lay(tmp_path, {**IMAGENET, name: text}), seed=0)
    assert data.classes == ("n00", "n01", "n02")
    val = data.splits["val"]
    assert {Path(p).stem: k for p, k in zip(val.paths, val.labels, strict=True)} == {
        f"val_{i}": i % 3 for i in range(6)
    }
    own = [*data.splits["train"].paths, *data.splits["test"].paths]
    assert len(own) == 18
    assert all("/train/" in path for path in own)
    assert "4 images without labels left out: top/test/images/test_0.JPEG" in "\n".join(data.notes)


def test_cells_of_boxes_are_no_classes(tmp_path: Path) -> None:
    rows = "".join(f"{i},n0{i % 2} 1 2 3 4\n" for i in range(8))
    root = lay(tmp_path, {**photos("images"), "a.csv": f"ImageId,PredictionString\n{rows}"})
    with pytest.raises(UserError, match="has boxes in column predictionstring"):
        read_data(root, seed=0)


def test_splits_may_be_called_alike_but_for_their_words(tmp_path: Path) -> None:
    names = ["cars_train", "cars_test"]
    assert splits_among(names) == {"cars_train": "train", "cars_test": "test"}
    assert splits_among(["train_station", "test_range", "a_test"]) == {}
    root = lay(tmp_path / "a", photos(*(f"{name}/{pet}" for name in names for pet in PETS)))
    assert read_data(root, seed=0).classes == PETS
    for where in (names, [f"{name}/{name}" for name in names]):
        root = lay(tmp_path / where[0], {**photos(*where), "devkit/train_annos.mat": "x"})
        with pytest.raises(UserError, match=r"has no class folders.*train_annos\.mat may hold labels"):
            read_data(root, seed=0)


def test_a_test_table_without_the_labels_is_left_out(tmp_path: Path) -> None:
    files = {
        **photos("boneage-training-dataset", count=10),
        **photos("boneage-test-dataset", count=2, first=50),
        "boneage-training-dataset.csv": "id,boneage,male\n" + "".join(f"{i},{i},{i % 2}\n" for i in range(10)),
        "boneage-test-dataset.csv": "Case ID,Sex\n50,M\n51,F\n",
    }
    root = lay(tmp_path, files)
    data = read_data(root, seed=0, lister=numbers_lister("boneage"))
    assert "boneage-test-dataset.csv has other columns, so its images are left out" in data.notes
    sexes = {
        **files,
        "boneage-training-dataset.csv": "id,label,age\n" + "".join(f"{i},{i % 2},{i}\n" for i in range(10)),
    }
    data = read_data(lay(tmp_path / "b", sexes), seed=0)
    assert "boneage-test-dataset.csv has no column label, so its images are left out" in data.notes


def test_a_column_is_numbered_in_plain_digits(tmp_path: Path) -> None:
    """Python reads the digits of every script as numbers."""
    rows = "".join(f"{i}.jpg,{i % 2},{i % 3}\n" for i in range(8))
    root = lay(tmp_path, {**photos("images"), "images/all.csv": f"path,a,b\n{rows}"})
    for data in (f"{root}/images/all.csv", root):
        with pytest.raises(UserError, match=r"\u0662: .* has the columns"):
            read_data(data, seed=0, choices=Choices(label_column="\u0662"))
    with pytest.raises(UserError, match=r"\u0662: .* has the columns"):
        read_data(f"{root}/images/all.csv", seed=0, lister=numbers_lister("\u0662"))


def test_tables_in_the_folders_of_splits_are_theirs(tmp_path: Path) -> None:
    """As Roboflow's `_classes.csv`, and `metadata.csv` of folders that hubs read."""
    files = {**photos("train", "test"), "test/metadata.csv": "file_name,label\n0.jpg,cat\n1.jpg,dog\n"}
    files["train/metadata.csv"] = "file_name,label\n" + "".join(f"{i}.jpg,{PETS[i % 2]}\n" for i in range(8))
    data = read_data(lay(tmp_path / "a", files), seed=0)
    assert [Path(path).parts[-2:] for path in data.splits["test"].paths] == [("test", "0.jpg"), ("test", "1.jpg")]
    boxes = {f"{s}/_classes.csv": "filename, cat, dog\n0.jpg, 1, 0\n1.jpg, 1, 1\n" for s in ("train", "valid", "test")}
    root = lay(tmp_path / "b", {**photos("train", "valid", "test", count=2), **boxes})
    data = read_data(root, seed=0, lister=lister(None))
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 2, "val": 2, "test": 2}


def test_labels_of_whole_images_in_cocos_form(tmp_path: Path) -> None:
    """As iNaturalist and camera traps have them: the folders are of places, and no annotation has a box."""
    categories = [{"id": 3, "name": "fox"}, {"id": 9, "name": "owl"}]
    files: Files = {}
    for split, count in (("train", 12), ("val", 6)):
        names = [f"photos/site{i % 3}/{split}{i}.jpg" for i in range(count)]
        files |= dict.fromkeys(names)
        images = [{"id": i, "file_name": name, "width": 8, "height": 8} for i, name in enumerate(names)]
        labels = [{"id": i, "image_id": i, "category_id": 3 if i % 4 else 9} for i in range(count)]
        files[f"{split}2018.json"] = json.dumps({"images": images, "annotations": labels, "categories": categories})
    data = read_data(lay(tmp_path, files), seed=0)
    assert data.classes == ("fox", "owl")
    assert len(data.splits["val"]) == 6
    for split, images in data.splits.items():
        of = "val" if split == "val" else "train"
        found = {
            int(Path(path).stem.removeprefix(of)): label
            for path, label in zip(images.paths, images.labels, strict=True)
        }
        assert found == {i: 0 if i % 4 else 1 for i in found}


def test_a_label_that_no_category_has_is_named(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "photos/0.jpg"}],
        "annotations": [{"image_id": 1, "category_id": 7}],
        "categories": [{"id": 1, "name": "fox"}],
    }
    files = {**photos("photos", count=4), "labels.json": json.dumps(content)}
    with pytest.raises(UserError, match=r"labels\.json is not a COCO annotation \(KeyError\(7\)\)"):
        read_data(lay(tmp_path, files), seed=0)
