from __future__ import annotations

from pathlib import Path

import pytest

from snella.data.layouts.voc_ade import ade, is_ade, is_voc, voc
from snella.data.readers.masked import is_masked
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
