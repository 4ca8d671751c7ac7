"""Real public data sets in the layouts in which they are published; each test is skipped where its set is absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from snella.data.folders.choices import NO_CHOICE, Choices
from snella.data.folders.detections import detections
from snella.data.folders.tree import tree
from snella.data.layouts import registry, rows
from snella.data.listing import Listing
from snella.data.readers.labelled import read_data
from snella.data.readers.masked import read_masked_data
from snella.errors import UserError
from snella.tasks.registry import task_for
from support.downloads import published


def sizes(data) -> dict[str, int]:
    return {split: len(images) for split, images in data.splits.items()}


def listing(data: str, choices: Choices = NO_CHOICE) -> Listing:
    return rows.list_data(registry.LABELLED, data, seed=0, holder="", choices=choices)


def refused(data: str, choices: Choices = NO_CHOICE) -> str:
    with pytest.raises(UserError) as caught:
        read_data(data, seed=0, choices=choices)
    return str(caught.value)


def test_camvid_is_segmentation_with_its_published_split() -> None:
    root = published("camvid")
    assert task_for(root) == "segment"
    data = read_masked_data(root, seed=0)
    assert sizes(data) == {"train": 367, "val": 101, "test": 233}
    assert (len(data.classes), data.classes[0], data.classes[10]) == (11, "sky", "bicyclist")
    assert data.code.ignore == (11,)
    assert "value 11 of the masks (unlabelled) stands for no class" in data.notes[0]
    assert "--task segment" in refused(root)


def test_magnetic_tiles_are_six_classes_or_masks() -> None:
    root = published("magnetic-tiles")
    data = read_data(root, seed=0)
    kinds = ("MT_Blowhole", "MT_Break", "MT_Crack", "MT_Fray", "MT_Free", "MT_Uneven")
    assert data.classes == kinds
    assert sum(sizes(data).values()) == 1344
    for images in data.splits.values():
        assert all(path.endswith(".jpg") for path in images.paths)
        assert all(kinds[k] in Path(path).parts for path, k in zip(images.paths, images.labels, strict=True))
    assert "1,344 masks beside the images left out" in "\n".join(data.notes)
    masked = read_masked_data(root, seed=0)
    assert (sum(sizes(masked).values()), masked.skipped) == (1344, ())
    assert masked.classes == ("background", "foreground")
    for image, mask in zip(masked.splits["test"].paths, masked.splits["test"].masks, strict=True):
        assert mask == f"{image[:-4]}.png"


def test_sign_digits_have_two_readings() -> None:
    root = published("sign-digits")
    text = refused(root)
    assert "10 classes in Dataset (0, 1, 2, ...), or 2 classes (Dataset, Examples)" in text
    assert f"give {root}/Dataset" in text
    data = read_data(f"{root}/Dataset", seed=0)
    assert (data.classes, sum(sizes(data).values())) == (tuple("0123456789"), 2062)


def test_groceries_are_listed_with_their_split_and_names() -> None:
    data = listing(published("grocery"))
    assert sizes(data) == {"train": 2640, "val": 296, "test": 2485}
    assert (len(data.classes), data.classes[0], data.classes[80]) == (81, "Golden-Delicious", "Zucchini")
    for entries in data.splits.values():
        assert all(data.classes[label] in Path(path).parts for path, label in entries)
    coarse = listing(published("grocery"), Choices(label_column="2"))
    assert (len(coarse.classes), coarse.classes[0], sizes(coarse)) == (43, "Apple", sizes(data))


def test_groceries_by_folders() -> None:
    root = published("grocery")
    assert len(listing(root, Choices("leaf")).classes) == 81
    assert listing(root, Choices("top")).classes == ("Fruit", "Packages", "Vegetables")


def test_blood_cells_are_objects_or_crops() -> None:
    root = published("bccd")
    text = refused(root)
    assert "Pascal VOC boxes, 120 images" in text
    assert "--crops" in text
    assert task_for(root) == "classify"
    data = read_data(root, seed=0, choices=Choices(crops=True))
    assert data.classes == ("Platelets", "RBC", "WBC")
    shapes = [shape for found in detections(tree(root)).shapes.values() for shape in found]
    assert sum(sizes(data).values()) <= len(shapes)
    sources = [{path.partition("#")[0] for path in images.paths} for images in data.splits.values()]
    assert sum(map(len, sources)) == len(set().union(*sources)) == 120
    image = data.splits["train"][0]["image"]
    left, top, right, bottom = map(int, data.splits["train"].paths[0].partition("#")[2].split(","))
    assert image.size == (right - left, bottom - top)


def test_dreambooth_subjects_are_classes() -> None:
    data = read_data(published("dreambooth"), seed=0)
    assert data.classes == ("cat2", "clock", "dog", "duck_toy", "rc_car")
    assert sum(sizes(data).values()) == 25
