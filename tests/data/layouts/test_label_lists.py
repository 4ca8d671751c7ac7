"""Several tables in one folder: which of them say the labels, and when that is not clear."""

from __future__ import annotations

from pathlib import Path

import pytest

from snella.data.folders.choices import NO_CHOICE, Choices
from snella.data.readers.labelled import read_data
from snella.errors import UserError
from support.downloads import lay, photos

TRAIN = "image_id,label\n" + "".join(f"{i}.jpg,{'cat' if i % 2 else 'dog'}\n" for i in range(8))
KAGGLE = {**photos("train_images"), "test_images/90.jpg": None, "test_images/91.jpg": None, "train.csv": TRAIN}


@pytest.mark.parametrize("name", ["sample_submission.csv", "sampleSubmission.csv", "submission_v2.csv"])
def test_the_labels_of_a_submission_are_not_true(tmp_path: Path, name: str) -> None:
    """They are there for the form: all alike, or at random."""
    data = read_data(lay(tmp_path, {**KAGGLE, name: "image_id,label\n90.jpg,cat\n91.jpg,cat\n"}), seed=0)
    assert data.layout == "images listed in train.csv"
    assert sum(map(len, data.splits.values())) == 8
    assert "2 images that no list names left out: test_images/90.jpg, test_images/91.jpg" in data.notes


def test_a_list_of_all_beside_one_of_train_is_refused(tmp_path: Path) -> None:
    root = lay(tmp_path, {**KAGGLE, "sheet.csv": "image_id,label\n90.jpg,cat\n91.jpg,dog\n"})
    with pytest.raises(UserError, match=r"two readings: train\.csv lists what is trained on, or sheet\.csv lists all"):
        read_data(root, seed=0)


def test_masks_named_as_their_images_are_not_images_of_a_class(tmp_path: Path) -> None:
    """As Oxford's pets have them: images/cat_1.jpg and annotations/trimaps/cat_1.png."""
    names = [f"{pet}_{i}" for pet in ("cat", "dog") for i in range(8)]
    files = {f"images/{name}.jpg": None for name in names} | {f"annotations/trimaps/{n}.png": (0, 1, 2) for n in names}
    root = lay(tmp_path, files)
    with pytest.raises(UserError, match="holds images with masks"):
        read_data(root, seed=0, choices=NO_CHOICE)
    data = read_data(root, seed=0, choices=Choices(classes="names"))
    assert data.classes == ("cat", "dog")
    assert all(path.endswith(".jpg") for images in data.splits.values() for path in images.paths)
    assert sum(map(len, data.splits.values())) == 16
    assert "16 masks of the images left out (--task segment reads them)" in data.notes
