from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snella.data.layouts.voc_ade import ade, is_ade, is_voc, voc
from snella.data.masks.files import IGNORE
from snella.data.readers.masked import is_masked, read_masked_data
from snella.errors import UserError
from support.masked import write_image, write_mask, write_pairs

ADE_TABLE = """Idx\tRatio\tTrain\tVal\tStuff\tName
1\t0.1\t3\t2\t1\twall
2\t0.1\t3\t2\t0\tbuilding, edifice
3\t0.1\t3\t2\t0\tsky
"""


@pytest.mark.parametrize("parent", [False, True])
def test_ade20k(tmp_path: Path, parent: bool) -> None:
    root = tmp_path / "ADEChallengeData2016"
    write_pairs(root, 3, images="images/training", masks="annotations/training")
    write_pairs(root, 2, images="images/validation", masks="annotations/validation", first=7)
    (root / "objectInfo150.txt").write_text(ADE_TABLE)
    given = tmp_path if parent else root
    assert is_ade(str(given))
    assert is_masked(str(given))
    listing = ade(str(given))
    assert (listing.layout, listing.folder) == ("ADE20K", str(root))
    assert {split: len(pairs) for split, pairs in listing.splits.items()} == {"train": 3, "test": 2}
    assert listing.splits["test"][0] == ("images/validation/7.png", "annotations/validation/7.png")
    assert listing.names
    assert listing.names.names == ("wall", "building", "sky")
    assert (listing.names.values, listing.names.ignore) == ((1, 2, 3), (0,))
    assert "published validation set is test" in " ".join(listing.notes)


def write_voc(root: Path, **lists: str) -> Path:
    for i in range(4):
        write_image(root / "JPEGImages" / f"2007_{i}.jpg")
        write_mask(root / "SegmentationClass" / f"2007_{i}.png", (0, 1, 255))
    (root / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
    for name, text in lists.items():
        (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text(text)
    return root


@pytest.mark.parametrize("given", ["VOCdevkit/VOC2012", "VOCdevkit", ""])
def test_voc(tmp_path: Path, given: str) -> None:
    root = write_voc(tmp_path / "VOCdevkit" / "VOC2012", train="2007_0\n2007_1\n2007_9\n", val="2007_2\n")
    write_image(root / "JPEGImages" / "unsegmented.jpg")
    assert is_voc(str(tmp_path / given))
    assert is_masked(str(tmp_path / given))
    listing = voc(str(tmp_path / given))
    assert (listing.layout, listing.folder.rstrip("/")) == ("Pascal VOC", str(root))
    assert listing.splits["train"] == [(f"JPEGImages/2007_{i}.jpg", f"SegmentationClass/2007_{i}.png") for i in (0, 1)]
    assert listing.splits["test"] == [("JPEGImages/2007_2.jpg", "SegmentationClass/2007_2.png")]
    assert "published val set is test" in listing.notes[0]
    assert listing.notes[1:] == ("train list: 1 names without image or mask left out: 2007_9",)
    assert listing.names
    assert (len(listing.names.names), listing.names.names[15], listing.names.ignore) == (21, "person", (255,))
    assert listing.names.colors
    assert listing.names.colors[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))  # VOC's colour map


def test_voc_with_trainval_alone(tmp_path: Path) -> None:
    root = write_voc(tmp_path, trainval="2007_0\n2007_1\n2007_2\n", val="2007_2\n")
    assert [image for image, _ in voc(str(root)).splits["train"]] == [f"JPEGImages/2007_{i}.jpg" for i in (0, 1)]


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        (dict(train="2007_0"), "lacks val.txt or train.txt"),
        (dict(val="2007_0"), "lacks val.txt or train.txt"),
        (dict(train="a", val="2007_0"), "no image of train has both its files, such as JPEGImages/a.jpg"),
        (dict(train="2007_0", val="\n"), "val.txt is empty"),
    ],
)
def test_voc_lists_at_fault(tmp_path: Path, lists: dict[str, str], said: str) -> None:
    root = write_voc(tmp_path, **lists)
    with pytest.raises(UserError) as caught:
        voc(str(root))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def city(root: Path, split: str, name: str, *kinds: str, values: np.ndarray | None = None) -> None:
    """Write an image of Cityscapes with masks of these kinds, rows of the values given."""
    images, masks = root / "leftImg8bit" / split / "ulm", root / "gtFine" / split / "ulm"
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4, 3), 90, np.uint8)).save(images / f"{name}_leftImg8bit.png")
    for kind in kinds:
        mask = np.zeros(16, np.uint8) if values is None else values
        Image.fromarray(mask.reshape(4, 4)).save(masks / f"{name}_gtFine_{kind}.png")


def test_cityscapes_by_its_label_ids(tmp_path: Path) -> None:
    """Ids 7 and 33 are road and bicycle; 0 to 6, 34 and the licence plate's -1 (255) are void."""
    values = np.array([7] * 5 + [33] * 4 + [0, 3, 6, 18, 30, 255, 255], np.uint8)
    for i in range(8):
        city(tmp_path, "train", f"ulm_{i}", "labelIds", "instanceIds", values=values)
    (tmp_path / "gtFine/train/ulm/ulm_0_gtFine_polygons.json").write_text("{}")
    city(tmp_path, "val", "ulm_9", "labelIds", values=values)
    city(tmp_path, "test", "ulm_10", "labelIds")
    data = read_masked_data(str(tmp_path), seed=0)
    assert (data.layout, len(data.classes)) == ("Cityscapes", 19)
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 7, "val": 1, "test": 1}
    assert data.splits["test"].paths[0].endswith("val/ulm/ulm_9_leftImg8bit.png")
    counts = dict(zip(data.classes, data.pixels["test"], strict=True))
    assert (counts.pop("road"), counts.pop("bicycle"), sum(counts.values())) == (5, 4, 0)
    mask = data.splits["test"][0]["mask"]
    assert sorted(set(mask.flatten().tolist())) == [IGNORE, 0, 18]
    assert any("10 other files of gtFine left out" in note for note in data.notes)
    assert any("1 image of the test set, whose masks are not published" in note for note in data.notes)


def test_cityscapes_by_its_train_ids_where_all_have_them(tmp_path: Path) -> None:
    values = np.array([0] * 5 + [18] * 4 + [255] * 7, np.uint8)
    for i in range(8):
        city(tmp_path / "cityscapes", "train", f"ulm_{i}", "labelTrainIds", values=values)
        city(tmp_path / "cityscapes", "train", f"ulm_{i}", "labelIds")
    data = read_masked_data(str(tmp_path), seed=0)
    assert any("masks are gtFine's labelTrainIds" in note for note in data.notes)
    assert (data.pixels["test"][0], data.pixels["test"][18], sum(data.pixels["test"])) == (5, 4, 9)
    (tmp_path / "cityscapes/gtFine/train/ulm/ulm_0_gtFine_labelTrainIds.png").unlink()
    with pytest.raises(UserError, match="the training masks hold no class"):
        read_masked_data(str(tmp_path), seed=0)
