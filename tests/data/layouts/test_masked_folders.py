from __future__ import annotations

import os
from pathlib import Path

import pytest

from snella.data.layouts.masked_folders import masked_folder
from snella.data.readers.labelled import read_data
from snella.data.readers.masked import is_masked, read_masked_data
from snella.errors import UserError
from support.downloads import lay
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


def test_what_is_not_such_a_folder(tmp_path: Path, class_folders) -> None:
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


def counts_of(data) -> dict[str, int]:
    return {split: len(images) for split, images in data.splits.items()}


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("{}", "{}annot"),
        ("{}", "{}_labels"),
        ("img/{}", "gt/{}"),
        ("{}_images", "{}_masks"),
        ("images/{}", "labels/{}"),
        ("wrapped/x_{}", "wrapped/y_{}"),
        ("{}/imgs", "{}/masks_png"),
    ],
)
def test_folders_of_masks_under_other_names(tmp_path: Path, images: str, masks: str) -> None:
    counts = {"train": 6, "val": 2, "test": 3}
    pairs = [(split, i) for split, count in counts.items() for i in range(count)]
    files: dict[str, object] = {f"{images.format(split)}/{i}.jpg": None for split, i in pairs}
    root = lay(tmp_path, files | {f"{masks.format(split)}/{i}.png": (0, 1) for split, i in pairs})
    assert is_masked(root)
    data = read_masked_data(root, seed=0)
    assert (counts_of(data), data.classes) == (counts, ("0", "1"))
    with pytest.raises(UserError, match="--task segment"):
        read_data(root, seed=0)


def test_names_that_all_end_alike_are_paired(tmp_path: Path) -> None:
    files: dict[str, object] = {f"images/{i}_training.png": None for i in range(8)}
    root = lay(tmp_path, files | {f"1st_manual/{i}_manual1.png": (0, 255) for i in range(8)})
    data = read_masked_data(root, seed=0)
    assert data.classes == ("background", "foreground")
    for images in data.splits.values():
        for image, mask in zip(images.paths, images.masks, strict=True):
            assert Path(image).name.split("_")[0] == Path(mask).name.split("_")[0]


def test_masks_beside_the_images_of_splits(tmp_path: Path) -> None:
    files = {
        f"{s}/{i}{e}.png": (0, 1) if e else None for s in ("train", "test") for i in range(8) for e in ("", "_mask")
    }
    data = read_masked_data(lay(tmp_path, files), seed=0)
    assert counts_of(data) == {"train": 7, "val": 1, "test": 8}
    assert data.splits["test"].masks[0] == str(tmp_path / "test" / "0_mask.png")
