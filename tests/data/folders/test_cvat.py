"""CVAT's annotations: each shape as its export writes it, and what cannot be read in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from snella.data.folders.cvat import cvat, is_cvat
from snella.data.folders.tree import tree
from snella.data.layouts.crops import runs_to_mask
from snella.data.readers.labelled import read_data
from snella.data.readers.masked import read_masked_data
from snella.errors import UserError
from snella.tasks.multilabel.listing import lister
from support.downloads import SIZE, lay, photos

WIDTH, HEIGHT = SIZE
BOX = '<box label="dog" xtl="1.5" ytl="2" xbr="10" ybr="12" z_order="0"><attribute name="a">b</attribute></box>'


def image(name: str, shapes: str, more: str = "") -> str:
    return f'<image id="0" name="{name}" width="{WIDTH}" height="{HEIGHT}"{more}>{shapes}</image>'


def written(root: Path, *images: str, folder: str = "images", count: int = 8) -> str:
    return lay(
        root, {**photos(folder, count=count), "annotations.xml": f"<annotations>{''.join(images)}</annotations>"}
    )


def test_boxes_masks_and_splits(tmp_path: Path) -> None:
    """A mask of 4 x 2 pixels at column 3, row 5: along its rows 1 outside, 5 inside, 2 outside."""
    mask = '<mask label="cat" rle="1, 5, 2" left="3" top="5" width="4" height="2"/>'
    root = written(tmp_path, image("0.jpg", BOX, ' subset="Train"'), image("1.jpg", mask, ' subset="Validation"'))
    found = tree(root)
    assert is_cvat(found)
    read = cvat(found)
    assert read.splits == {"images/0.jpg": "train", "images/1.jpg": "val"}
    (dog,), (cat,) = read.shapes["images/0.jpg"], read.shapes["images/1.jpg"]
    assert (dog.label, dog.box, dog.outlines) == ("dog", (1.5, 2.0, 10.0, 12.0), ())
    assert cat.box == (3, 5, 7, 7)
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[5, 4:7] = expected[6, 3:5] = True
    assert cat.runs is not None
    assert np.array_equal(runs_to_mask(cat.runs), expected)


def test_masks_are_drawn(tmp_path: Path) -> None:
    whole = f'<mask label="cat" rle="0, {WIDTH * 3}" left="0" top="0" width="{WIDTH}" height="3"/>'
    data = read_masked_data(written(tmp_path, *(image(f"{i}.jpg", whole) for i in range(8))), seed=0)
    assert data.classes == ("background", "cat")
    mask = data.splits["train"][0]["mask"].numpy()
    assert (mask[:3] == 1).all()
    assert (mask[3:] == 0).all()


@pytest.mark.parametrize(
    ("folder", "name", "more"),
    [
        ("images", "0.jpg", ""),
        ("images/train", "0.jpg", ' subset="train"'),
        ("deep/a", "deep/a/0.jpg", ""),
        ("b", "0.jpg", ""),
    ],
)
def test_where_images_lie(tmp_path: Path, folder: str, name: str, more: str) -> None:
    read = cvat(tree(written(tmp_path, image(name, BOX, more), folder=folder)))
    assert list(read.shapes) == [f"{folder}/0.jpg"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (image("0.jpg", '<polyline label="road" points="1,2;3,4"/>'), "'?road'? is a polyline, which is neither"),
        (image("0.jpg", BOX.replace("z_order", 'rotation="30" z_order')), "the box of '?dog'? is rotated"),
        (image("0.jpg", '<mask label="c" rle="1, 5" left="3" top="5" width="4" height="2"/>'), "run lengths of a mask"),
        (image("0.jpg", '<mask label="c" rle="8" left="-3" top="5" width="4" height="2"/>'), "run lengths of a mask"),
        (image("0.jpg", '<polygon label="c" points="1,2;3"/>'), "odd number of coordinates"),
        (image("0.jpg", '<polygon label="c" points="1,nan;3,4;5,6"/>'), "not a number of pixels"),
        (image("0.jpg", '<polygon label="" points="1,2;3,4;5,6"/>'), "an object has no name"),
        ('<track id="0" label="c"><box frame="0" xtl="1" ytl="1" xbr="2" ybr="2"/></track>', "export the task as CVAT"),
        (image("0.jpg", BOX) + "<image", "is not an annotation of CVAT"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        cvat(tree(written(tmp_path, content)))
    assert "annotations.xml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_name_for_several_images_is_refused(tmp_path: Path) -> None:
    lay(tmp_path, photos("a", "b"))
    with pytest.raises(UserError, match=r"0\.jpg'? of annotations\.xml may be a/0\.jpg"):
        cvat(tree(written(tmp_path, image("0.jpg", BOX), folder="c", count=0)))


def test_no_file_of_a_single_image_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pascal VOC has one for each of its images: 17,000."""
    files = photos("images") | {
        f"annotations/{i}.xml": f"<annotations>{image('0.jpg', BOX)}</annotations>" for i in range(8)
    }
    found = tree(lay(tmp_path, files))
    monkeypatch.setattr("snella.data.folders.cvat.read_text", lambda path: pytest.fail(f"{path} is opened"))
    assert not is_cvat(found)


def tag(label: str) -> str:
    return f'<tag label="{label}" source="manual"></tag>'


def test_tags_of_whole_images_are_their_labels(tmp_path: Path) -> None:
    subsets = ("Train", "Train", "Train", "Train", "Validation", "Validation", "Test", "Test")
    images = [image(f"{i}.jpg", tag(("cat", "dog")[i % 2]), f' subset="{s}"') for i, s in enumerate(subsets)]
    data = read_data(written(tmp_path / "a", *images), seed=0)
    assert (data.classes, data.layout) == (("cat", "dog"), "images listed in annotations.xml")
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 4, "val": 2, "test": 2}
    for images_of in data.splits.values():
        assert [int(Path(path).stem) % 2 for path in images_of.paths] == list(images_of.labels)
    several = [image(f"{i}.jpg", tag(("cat", "dog")[i % 2]) + tag("wet") * (i > 3)) for i in range(8)]
    root = written(tmp_path / "b", *several)
    with pytest.raises(UserError, match=r"4\.jpg has two labels, cat and wet; keep one, or add --task multilabel"):
        read_data(root, seed=0)
    labels = read_data(root, seed=0, lister=lister(None))
    assert labels.classes == ("cat", "dog", "wet")
    found = {int(Path(p).stem): row for s in labels.splits.values() for p, row in zip(s.paths, s.targets, strict=True)}
    assert found == {i: (float(i % 2 == 0), float(i % 2), float(i > 3)) for i in range(8)}
