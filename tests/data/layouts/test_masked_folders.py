from __future__ import annotations

import os
from pathlib import Path

import pytest

from snella.data.layouts.masked_folders import masked_folder
from snella.data.readers.masked import is_masked
from snella.errors import UserError
from support.masked import write_image, write_mask, write_pairs


def refusal(root: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        masked_folder(str(root))
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images", "masks"),
        ("imgs", "labels"),
        ("Image", "Label"),
        ("JPEGImages", "SegmentationClass"),
        ("img", "annotations"),
        ("IMAGES", "gt"),
        ("Original", "Ground Truth"),
        ("Original", "Ground_truth"),
    ],
)
def test_usual_names(tmp_path: Path, images: str, masks: str) -> None:
    write_pairs(tmp_path, 3, images=images, masks=masks)
    assert is_masked(str(tmp_path))
    listing = masked_folder(str(tmp_path))
    assert listing.splits == {"all": [(f"{images}/{i}.png", f"{masks}/{i}.png") for i in range(3)]}
    assert (listing.layout, listing.folder, listing.names, listing.notes) == (
        "images and masks",
        str(tmp_path),
        None,
        (),
    )


@pytest.mark.parametrize("suffix", ["_mask", "_seg", "_label", "_gt", "_segmentation", "_MASK"])
def test_a_suffix_that_all_masks_have(tmp_path: Path, suffix: str) -> None:
    write_pairs(tmp_path, 2, suffix=suffix)
    assert masked_folder(str(tmp_path)).splits["all"] == [
        ("images/0.png", f"masks/0{suffix}.png"),
        ("images/1.png", f"masks/1{suffix}.png"),
    ]
    write_mask(tmp_path / "masks" / "other.png", (0, 1))
    assert "no mask of" in refusal(tmp_path)


def test_a_suffix_of_both_sides_stays(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a_gt.jpg")
    write_mask(tmp_path / "masks" / "a_gt.png", (0, 1))
    assert masked_folder(str(tmp_path)).splits["all"] == [("images/a_gt.jpg", "masks/a_gt.png")]


def test_pairs_have_one_relative_path_without_suffix(tmp_path: Path) -> None:
    for name in ("a/1", "b/1", "b/deep/2"):
        write_image(tmp_path / "images" / f"{name}.jpg")
        write_mask(tmp_path / "masks" / f"{name}.tif", (0, 1))
    write_image(tmp_path / "images" / ".hidden.jpg")
    assert masked_folder(str(tmp_path)).splits["all"] == [
        (f"images/{name}.jpg", f"masks/{name}.tif") for name in ("a/1", "b/1", "b/deep/2")
    ]


def test_lone_images_and_masks_are_counted_and_named(tmp_path: Path) -> None:
    write_pairs(tmp_path, 3)
    for i in range(10, 15):
        write_image(tmp_path / "images" / f"{i}.png")
    write_mask(tmp_path / "masks" / "x.png", (0, 1))
    listing = masked_folder(str(tmp_path))
    assert len(listing.splits["all"]) == 3
    assert listing.notes == (
        "images: 5 images without a mask left out: 10.png, 11.png, 12.png, ...",
        "masks: 1 masks without an image left out: x.png",
    )


def test_no_pair_at_all(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "cat.jpg")
    write_mask(tmp_path / "masks" / "dog.png", (0, 1))
    assert "cat.jpg and dog.png; give mask and image the same name" in refusal(tmp_path)


def test_two_for_one(tmp_path: Path) -> None:
    write_pairs(tmp_path, 2)
    write_mask(tmp_path / "masks" / "1.tif", (0, 1))
    assert "2 masks for one image: 1.png and 1.tif; keep one" in refusal(tmp_path)
    (tmp_path / "masks" / "1.tif").unlink()
    write_image(tmp_path / "images" / "0.jpg")
    assert "2 images for one mask: 0.jpg and 0.png; keep one" in refusal(tmp_path)


def test_two_folders_for_one_role(tmp_path: Path) -> None:
    write_pairs(tmp_path, 1)
    write_pairs(tmp_path, 1, masks="labels")
    assert "has two folders of masks, labels and masks; keep one" in refusal(tmp_path)


def test_split_folders(tmp_path: Path) -> None:
    for i, split in enumerate(("Training", "validation", "test")):
        write_pairs(tmp_path / split, 2, first=10 * i)
    write_image(tmp_path / "train.png")
    assert is_masked(str(tmp_path))
    listing = masked_folder(str(tmp_path))
    assert listing.layout == "images and masks in split folders"
    assert listing.splits["train"] == [(f"Training/images/{i}.png", f"Training/masks/{i}.png") for i in range(2)]
    assert listing.splits["val"][0] == ("validation/images/10.png", "validation/masks/10.png")
    assert os.path.isfile(listing.path(listing.splits["test"][1][1]))


def test_splits_below_images_and_masks(tmp_path: Path) -> None:
    write_pairs(tmp_path, 2, images="images/train", masks="masks/training")
    write_pairs(tmp_path, 2, images="images/val", masks="masks/val", first=5)
    write_image(tmp_path / "images" / "test" / "9.png")
    assert is_masked(str(tmp_path))
    listing = masked_folder(str(tmp_path))
    assert listing.splits == {
        "train": [(f"images/train/{i}.png", f"masks/training/{i}.png") for i in range(2)],
        "val": [(f"images/val/{i}.png", f"masks/val/{i}.png") for i in (5, 6)],
    }
    assert listing.notes == ("images/test has no masks beside it, left out",)


def test_a_split_without_masks_is_left_out(tmp_path: Path) -> None:
    write_pairs(tmp_path / "train", 2)
    write_image(tmp_path / "test" / "images" / "9.png")
    listing = masked_folder(str(tmp_path))
    assert list(listing.splits) == ["train"]
    assert listing.notes == ("test has no masks beside it, left out",)


def test_two_folders_for_one_split(tmp_path: Path) -> None:
    write_pairs(tmp_path / "val", 1)
    write_pairs(tmp_path / "valid", 1)
    assert "two val folders, val and valid" in refusal(tmp_path)
    write_pairs(tmp_path / "b", 1, images="images/dev", masks="masks/dev")
    write_pairs(tmp_path / "b", 1, images="images/val", masks="masks/val")
    assert "two val folders, dev and val" in refusal(tmp_path / "b")


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
    assert is_masked(str(given))
    listing = masked_folder(str(given))
    assert (listing.layout, listing.folder) == ("ADE20K", str(root))
    assert {split: len(pairs) for split, pairs in listing.splits.items()} == {"train": 3, "test": 2}
    assert listing.splits["test"][0] == ("images/validation/7.png", "annotations/validation/7.png")
    assert listing.names
    assert listing.names.names == ("wall", "building", "sky")
    assert (listing.names.values, listing.names.ignore) == ((1, 2, 3), (0,))
    assert "published validation set is test" in " ".join(listing.notes)


def voc(root: Path, **lists: str) -> Path:
    for i in range(4):
        write_image(root / "JPEGImages" / f"2007_{i}.jpg")
        write_mask(root / "SegmentationClass" / f"2007_{i}.png", (0, 1, 255))
    (root / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
    for name, text in lists.items():
        (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text(text)
    return root


@pytest.mark.parametrize("given", ["VOCdevkit/VOC2012", "VOCdevkit", ""])
def test_voc(tmp_path: Path, given: str) -> None:
    root = voc(tmp_path / "VOCdevkit" / "VOC2012", train="2007_0\n2007_1\n2007_9\n", val="2007_2\n")
    write_image(root / "JPEGImages" / "unsegmented.jpg")
    assert is_masked(str(tmp_path / given))
    listing = masked_folder(str(tmp_path / given))
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
    root = voc(tmp_path, trainval="2007_0\n2007_1\n2007_2\n", val="2007_2\n")
    assert [image for image, _ in masked_folder(str(root)).splits["train"]] == [
        f"JPEGImages/2007_{i}.jpg" for i in (0, 1)
    ]


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
    assert said in refusal(voc(tmp_path, **lists))


def test_what_is_no_such_folder(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path / "pets", cat=2, dog=2)
    assert not is_masked(str(tmp_path / "pets"))
    assert "holds no images with masks" in refusal(tmp_path / "pets")
    write_image(tmp_path / "a" / "images" / "1.png")
    (tmp_path / "a" / "labels").mkdir()
    (tmp_path / "a" / "labels" / "1.txt").write_text("boxes")
    assert not is_masked(str(tmp_path / "a"))
    assert "has images (images) but no folder of masks" in refusal(tmp_path / "a")
    write_mask(tmp_path / "b" / "masks" / "1.png", (0, 1))
    assert "has masks (masks) but no folder of images" in refusal(tmp_path / "b")
    assert not is_masked(str(tmp_path / "gone"))
    assert not is_masked("elpv")


def test_names_files_in_the_root_or_beside_the_images(tmp_path: Path) -> None:
    write_pairs(tmp_path / "train", 2)
    (tmp_path / "train" / "classes.json").write_text('["a", "b"]')
    listing = masked_folder(str(tmp_path))
    assert listing.names
    assert listing.names.names == ("a", "b")
    (tmp_path / "classes.json").write_text('["c", "d"]')
    listing = masked_folder(str(tmp_path))
    assert listing.names
    assert listing.names.names == ("c", "d")
