from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snella.data.loading import ImageBatches
from snella.data.masks.files import IGNORE, MaskCode, MaskData
from snella.data.readers.labelled import read_data
from snella.data.readers.masked import is_masked, read_masked_data, read_masked_test_data
from snella.data.transforms.images import Preprocessing
from snella.data.transforms.masked import masked_eval_transform
from snella.errors import UserError
from support.masked import write_image, write_mask, write_pairs

TWO_COLORS = ((0, 0, 0), (255, 255, 255))


def refusal(data: str | Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        read_masked_data(str(data), seed=0, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


def sizes(data: MaskData) -> dict[str, int]:
    return {split: len(images) for split, images in data.splits.items()}


def names(data: MaskData, split: str) -> list[str]:
    return [os.path.basename(path) for path in data.splits[split].paths]


def test_a_folder_becomes_three_splits(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "set", 20)
    data = read_masked_data(root, seed=0)
    assert (data.layout, data.root, data.classes) == ("images and masks", root, ("0", "1", "2"))
    assert data.code == MaskCode((0, 1, 2))
    assert list(data.splits) == ["train", "val", "test"]
    assert sizes(data) == {"train": 14, "val": 3, "test": 3}
    assert data.pixels == {"train": (14 * 40,) * 3, "val": (3 * 40,) * 3, "test": (3 * 40,) * 3}
    assert data.notes == ("val (3 images) and test (3 images) taken out of the 20 training images, seed 0",)
    assert len({name for split in data.splits for name in names(data, split)}) == 20
    example = data.splits["train"][0]
    assert example["mask"].flatten().tolist() == [0, 1, 2] * 40  # pyright: ignore
    for images in data.splits.values():
        for image, mask in zip(images.paths, images.masks, strict=True):
            assert os.path.basename(image) == os.path.basename(mask)


def test_the_split_is_a_function_of_seed_and_names(tmp_path: Path) -> None:
    here, there = (read_masked_data(write_pairs(tmp_path / place, 20), seed=5) for place in ("here", "there"))
    other = read_masked_data(str(tmp_path / "here"), seed=6)
    for split in ("val", "test"):
        assert names(here, split) == names(there, split)
    assert names(here, "val") != names(other, "val")
    write_pairs(tmp_path / "there", 1, first=20)
    larger = read_masked_data(str(tmp_path / "there"), seed=5)
    assert set(names(here, "val")) - set(names(larger, "val")) == set()


def test_fractions(tmp_path: Path) -> None:
    data = read_masked_data(write_pairs(tmp_path, 20), seed=0, val_fraction=0.25, test_fraction=0.5)
    assert sizes(data) == {"train": 5, "val": 5, "test": 10}
    assert "val_fraction is 0" in refusal(tmp_path, val_fraction=0)
    assert "keep it below 1" in refusal(tmp_path, val_fraction=0.5, test_fraction=0.5)
    write_pairs(tmp_path / "few", 2)
    assert "2 images are too few to take a test split" in refusal(tmp_path / "few")


def test_given_splits_stay(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "val", "test")):
        write_pairs(tmp_path / split, 3, first=10 * i)
    data = read_masked_data(str(tmp_path), seed=0)
    assert sizes(data) == {"train": 3, "val": 3, "test": 3}
    assert names(data, "val") == ["10.png", "11.png", "12.png"]
    assert data.notes == ()


def test_val_comes_out_of_train_where_only_test_is_given(tmp_path: Path) -> None:
    write_pairs(tmp_path / "train", 20)
    write_pairs(tmp_path / "test", 4, first=50)
    data = read_masked_data(str(tmp_path), seed=0)
    assert sizes(data) == {"train": 17, "val": 3, "test": 4}
    assert data.notes == ("val (3 images) taken out of the 20 training images, seed 0",)
    (tmp_path / "train").rename(tmp_path / "val")
    assert "has test and val but no train split" in refusal(tmp_path)


def test_ade20k_and_voc(tmp_path: Path) -> None:
    ade = tmp_path / "ade"
    write_pairs(ade, 10, (0, 1, 3), images="images/training", masks="annotations/training")
    write_pairs(ade, 2, (0, 2), images="images/validation", masks="annotations/validation", first=50)
    (ade / "objectInfo150.txt").write_text("Idx\tName\n" + "".join(f"{i}\tclass {i}, thing\n" for i in range(1, 151)))
    data = read_masked_data(str(ade), seed=0)
    assert sizes(data) == {"train": 8, "val": 2, "test": 2}
    assert (len(data.classes), data.classes[2]) == (150, "class 3")
    assert data.code == MaskCode(tuple(range(1, 151)), ignore=(0,))
    assert set(data.splits["test"][0]["mask"].flatten().tolist()) == {IGNORE, 1}  # pyright: ignore
    assert data.pixels["train"][:4] == (320, 0, 320, 0)
    assert any(note.startswith("148 of 150 classes have no pixel in train") for note in data.notes)

    voc = tmp_path / "voc"
    for i in range(6):
        write_image(voc / "JPEGImages" / f"{i}.jpg")
        write_mask(voc / "SegmentationClass" / f"{i}.png", (0, 15, 255))
    lists = voc / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n1\n2\n3\n")
    (lists / "val.txt").write_text("4\n5\n")
    data = read_masked_data(str(voc), seed=0)
    assert sizes(data) == {"train": 3, "val": 1, "test": 2}
    assert data.code == MaskCode(tuple(range(21)), ignore=(255,))
    assert data.palette[15] == (192, 128, 128)
    assert data.pixels["test"] == (80, *[0] * 14, 80, *[0] * 5)


def polyps(root: Path, ending: str, count: int = 10) -> np.ndarray:
    """Kvasir-SEG's layout: discs, saved as JPEG with its noise. Returns the disc."""
    y, x = np.mgrid[:40, :48]
    disc = (x - 20) ** 2 + (y - 22) ** 2 < 100
    for i in range(count):
        write_image(root / "images" / f"{i}.jpg", (48, 40))
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(disc.astype(np.uint8) * 255).convert("RGB").save(root / "masks" / f"{i}{ending}", quality=60)
    return disc


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif"])
def test_polyps(tmp_path: Path, ending: str) -> None:
    disc = polyps(tmp_path, ending)
    if ending == ".jpg":
        assert len(np.unique(Image.open(tmp_path / "masks" / "0.jpg"))) > 2  # noise there is
    data = read_masked_data(str(tmp_path), seed=0)
    assert data.classes == ("background", "foreground")
    assert data.code == MaskCode((0, 255), binary=True)
    assert torch.equal(data.splits["val"][0]["mask"].bool(), torch.from_numpy(disc))  # pyright: ignore
    assert data.pixels["test"] == (2 * int((~disc).sum()), 2 * int(disc.sum()))
    assert "masks of two levels: grey above half is foreground" in data.notes


def test_how_much_is_grey_counts_not_how_many_greys(tmp_path: Path) -> None:
    """Soft edges hold many greys in few pixels; a third level is one grey in many."""
    polyps(tmp_path, ".jpg")
    soft = np.zeros((40, 48), dtype=np.uint8)
    soft[:, 24:] = 255
    soft[0, :] = range(70, 166, 2)
    Image.fromarray(soft).save(tmp_path / "masks" / "3.jpg", quality=100)
    assert read_masked_data(str(tmp_path), seed=0).code.binary
    soft[:30] = 128
    Image.fromarray(soft).save(tmp_path / "masks" / "3.jpg", quality=100)
    assert "stands for no class (0 or 255; 75% of it is grey)" in refusal(tmp_path)


def test_two_levels_with_a_names_file(tmp_path: Path) -> None:
    polyps(tmp_path, ".jpg")
    for content in (["tissue", "polyp"], {"0": "tissue", "255": "polyp"}):
        (tmp_path / "classes.json").write_text(json.dumps(content))
        data = read_masked_data(str(tmp_path), seed=0)
        assert (data.classes, data.code.binary) == (("tissue", "polyp"), True)
        assert "grey above half is polyp" in " ".join(data.notes)
    (tmp_path / "classes.json").write_text('["a", "b", "c"]')
    assert "is a JPEG, whose values are not exact, and not of two levels" in refusal(tmp_path)


def test_one_bit_masks_are_of_two_levels(tmp_path: Path) -> None:
    write_pairs(tmp_path, 8)
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(np.resize([True, False], (10, 12))).save(path)
    for path in (tmp_path / "images").iterdir():
        write_image(path, (12, 10))
    data = read_masked_data(str(tmp_path), seed=0)
    assert data.classes == ("background", "foreground")
    assert data.pixels["val"] == (60, 60)


def test_255_beside_0_is_ignored_where_that_is_asked(tmp_path: Path) -> None:
    write_pairs(tmp_path, 8, (0, 255))
    assert read_masked_data(str(tmp_path), seed=0).code.binary
    assert "hold only the value 0" in refusal(tmp_path, ignore_index=255)
    write_pairs(tmp_path / "b", 8, (0, 1, 255))
    data = read_masked_data(str(tmp_path / "b"), seed=0, ignore_index=255)
    assert (data.classes, data.code) == (("0", "1"), MaskCode((0, 1), ignore=(255,)))
    assert data.pixels["val"] == (40, 40)


def test_values_with_holes_need_names_or_ignore(tmp_path: Path) -> None:
    write_pairs(tmp_path, 8, (0, 1, 9))
    said = refusal(tmp_path)
    assert "hold the values 0, 1, 9" in said
    assert "classes.json" in said
    assert "--ignore-index 9" in said
    assert read_masked_data(str(tmp_path), seed=0, ignore_index=9).classes == ("0", "1")
    (tmp_path / "classes.json").write_text('{"0": "sky", "9": "road", "1": "car"}')
    data = read_masked_data(str(tmp_path), seed=0)
    assert (data.classes, data.code.values) == (("sky", "car", "road"), (0, 1, 9))
    data = read_masked_data(str(tmp_path), seed=0, ignore_index=1)
    assert (data.classes, data.code) == (("sky", "road"), MaskCode((0, 9), ignore=(1,)))
    assert "ignore_index is -1" in refusal(tmp_path, ignore_index=-1)


def test_photographs_are_no_masks(tmp_path: Path) -> None:
    write_pairs(tmp_path, 4)
    for i in range(4):
        write_image(tmp_path / "images" / f"{i}.png", (16, 16))
        write_mask(tmp_path / "masks" / f"{i}.png", range(256), (16, 16))
    assert "the masks hold 256 values, as photographs do" in refusal(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    for i in range(4):
        Image.fromarray(pixels).save(tmp_path / "masks" / f"{i}.png")
    assert "colours; a mask has one for each class" in refusal(tmp_path)


def test_sixteen_bit_masks(tmp_path: Path) -> None:
    write_pairs(tmp_path, 8)
    for path in (tmp_path / "masks").iterdir():
        write_mask(path, (0, 1000, 65535), dtype="uint16")
    (tmp_path / "classes.json").write_text('{"0": "a", "1000": "b"}')
    data = read_masked_data(str(tmp_path), seed=0, ignore_index=65535)
    assert data.splits["val"][0]["mask"].unique().tolist() == [IGNORE, 0, 1]  # pyright: ignore
    assert data.pixels["val"] == (40, 40)


def test_an_unknown_value_is_named_with_its_file(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "val", "test")):
        write_pairs(tmp_path / split, 3, first=10 * i)
    path = write_mask(tmp_path / "val" / "masks" / "11.png", (0, 7))
    said = refusal(tmp_path)
    assert f"{path}: value 7 stands for no class (0 to 2)" in said
    assert "--ignore-index" in said


def test_one_class_is_none(tmp_path: Path) -> None:
    write_pairs(tmp_path, 8, (0,))
    assert "hold only the value 0" in refusal(tmp_path)
    (tmp_path / "classes.json").write_text('["sky", "road"]')
    assert "the training masks hold only 'sky'; segmentation needs two classes" in refusal(tmp_path)
    assert "fewer than two classes beside those ignored" in refusal(tmp_path, ignore_index=1)


def test_palettes_and_colours(tmp_path: Path) -> None:
    write_pairs(tmp_path, 8)
    for path in (tmp_path / "masks").iterdir():
        image = Image.new("P", (12, 10))
        image.putdata([0, 1, 2] * 40)
        image.putpalette([0, 0, 0, 200, 30, 40, 10, 20, 230])
        image.save(path)
    data = read_masked_data(str(tmp_path), seed=0)
    assert (data.classes, data.palette) == (("0", "1", "2"), ((0, 0, 0), (200, 30, 40), (10, 20, 230)))
    for path in (tmp_path / "masks").iterdir():
        Image.open(path).convert("RGB").save(path)
    assert "is colour-coded; give the name and color of each class in a classes.json" in refusal(tmp_path)
    (tmp_path / "classes.json").write_text('["sky", "road", "car"]')
    assert "give the name and color of each class in" in refusal(tmp_path)
    entries = [
        {"name": "sky", "color": [10, 20, 230]},
        {"name": "road", "color": [200, 30, 40]},
        {"name": "void", "color": [0, 0, 0]},
    ]
    (tmp_path / "classes.json").write_text(json.dumps(entries))
    data = read_masked_data(str(tmp_path), seed=0)
    assert data.code == MaskCode((0, 1, 2), data.palette)
    assert data.splits["train"][0]["mask"].flatten().tolist() == [2, 1, 0] * 40  # pyright: ignore
    data = read_masked_data(str(tmp_path), seed=0, ignore_index=0)
    assert data.classes == ("sky", "road")
    assert data.splits["train"][0]["mask"].flatten().tolist() == [IGNORE, 1, 0] * 40  # pyright: ignore
    Image.new("RGB", (12, 10), (9, 9, 8)).save(tmp_path / "masks" / "3.png")
    assert "3.png: colour (9, 9, 8) stands for no class" in refusal(tmp_path)


def test_colours_of_a_names_file_are_the_palette_of_grey_masks(tmp_path: Path) -> None:
    write_pairs(tmp_path, 8, (0, 1))
    entries = [{"name": "sky", "color": [9, 9, 230]}, {"name": "road", "color": [200, 30, 40]}]
    (tmp_path / "classes.json").write_text(json.dumps(entries))
    data = read_masked_data(str(tmp_path), seed=0)
    assert (data.code, data.palette) == (MaskCode((0, 1)), ((9, 9, 230), (200, 30, 40)))


def test_a_palette_that_tells_nothing_apart_is_not_used(tmp_path: Path) -> None:
    write_pairs(tmp_path, 8)
    for path in (tmp_path / "masks").iterdir():
        Image.open(path).convert("P").save(path)  # Pillow's palette of greys: 0, 1, 2
    assert len({tuple(part >> 6 for part in color) for color in read_masked_data(str(tmp_path), seed=0).palette}) == 3


def test_pairs_that_cannot_be_used_are_left_out_and_listed(tmp_path: Path) -> None:
    write_pairs(tmp_path, 20)
    (tmp_path / "images" / "3.png").write_bytes(b"")
    (tmp_path / "masks" / "4.png").write_bytes(b"no image")
    polyps(tmp_path / "cut", ".png", 1)
    whole = (tmp_path / "cut" / "images" / "0.jpg").read_bytes()
    (tmp_path / "images" / "6.png").write_bytes(whole[:-40])  # its header is good
    write_mask(tmp_path / "masks" / "6.png", (0, 1, 2), (48, 40))
    write_mask(tmp_path / "masks" / "5.png", (0, 1), (10, 10))
    seen = []
    data = read_masked_data(str(tmp_path), seed=0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 20) for i in range(1, 21)]
    assert sum(sizes(data).values()) == 16
    faults = {os.path.relpath(fault.path, tmp_path): fault.reason for fault in data.skipped}
    assert "truncated" in faults.pop("images/6.png")
    assert faults == {
        "images/3.png": "empty file (0 bytes)",
        "masks/4.png": "not an image, or in a format that Pillow does not read",
        "images/5.png": "mask is 10 x 10, image 12 x 10",
    }


def test_nothing_that_can_be_used(tmp_path: Path) -> None:
    write_pairs(tmp_path, 5)
    for path in (tmp_path / "masks").iterdir():
        write_mask(path, (0, 1), (10, 10))
    assert "none of the 5 pairs can be used, the first: " in (said := refusal(tmp_path))
    assert "mask is 10 x 10, image 12 x 10" in said
    write_pairs(tmp_path / "b" / "train", 5)
    write_pairs(tmp_path / "b" / "val", 1)
    (tmp_path / "b" / "val" / "masks" / "0.png").write_bytes(b"")
    assert "none of the 1 pairs of val can be used" in refusal(tmp_path / "b")


def test_many_pairs_are_sampled(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("snella.data.masks.scan.CHECK_ALL", 10)
    monkeypatch.setattr("snella.data.masks.scan.SCANNED", 4)
    write_pairs(tmp_path, 20)
    write_image(tmp_path / "images" / "7.png", (5, 5))
    data = read_masked_data(str(tmp_path), seed=0)
    assert sum(sizes(data).values()) == 19
    assert sum(map(sum, data.pixels.values())) == 4 * 120
    assert any("those of 4 masks, evenly chosen" in note for note in data.notes)


def test_paths_that_are_no_folder(tmp_path: Path) -> None:
    write_pairs(tmp_path / "polyps", 2)
    assert "did you mean" in refusal(tmp_path / "polips")
    assert "there is no folder" in refusal(tmp_path / "gone" / "polyps")
    assert "is a single image" in refusal(tmp_path / "polyps" / "images" / "0.png")
    for name, said in (("a.zip", "is an archive; unpack it"), ("a.txt", "is no folder; give one with images/NAME")):
        (tmp_path / name).write_text("")
        assert said in refusal(tmp_path / name)


def test_batches_of_them(tmp_path: Path) -> None:
    data = read_masked_data(write_pairs(tmp_path, 8), seed=0)
    transform = masked_eval_transform(Preprocessing(16, resize="squash"))
    batch = next(iter(ImageBatches(data.splits["train"], transform, batch_size=4, shuffle=False, seed=0)))
    assert (batch["image"].shape, batch["mask"].shape) == ((4, 3, 16, 16), (4, 10, 12))


def test_class_folders_reader_points_to_the_task(tmp_path: Path, class_folders) -> None:
    root = write_pairs(tmp_path / "set", 2)
    with pytest.raises(UserError) as caught:
        read_data(root, seed=0)
    assert str(caught.value) == f"{root} holds images with masks; add --task segment"
    class_folders(tmp_path / "pets", images=5, cat=5)
    assert read_data(str(tmp_path / "pets"), seed=0).classes == ("cat", "images")


def test_data_reads_with_the_models_code(tmp_path: Path) -> None:
    model = dict(classes=("a", "b", "c"), code=MaskCode((0, 1, 2)), palette=((0, 0, 0), (1, 1, 1), (2, 2, 2)), seed=0)
    root = write_pairs(tmp_path / "set", 4, (0, 1))
    data = read_masked_test_data(root, **model)
    assert (list(data.splits), data.classes, data.code) == (["test"], ("a", "b", "c"), model["code"])
    assert data.pixels == {"test": (240, 240, 0)}
    assert data.notes == ()
    path = write_mask(tmp_path / "set" / "masks" / "2.png", (0, 7))
    with pytest.raises(UserError) as caught:
        read_masked_test_data(root, **model)
    assert f"{path}: value 7 stands for no class (0 to 2)" in str(caught.value)
    write_pairs(tmp_path / "split" / "train", 3)
    write_pairs(tmp_path / "split" / "val", 2)
    (tmp_path / "split" / "classes.json").write_text('["x", "y", "z"]')
    data = read_masked_test_data(str(tmp_path / "split"), **model)
    assert sizes(data) == {"test": 2}
    assert data.notes[0] == "no test split: val is used"
    assert "names other classes" in data.notes[1]
    write_pairs(tmp_path / "split" / "test", 1)
    assert sizes(read_masked_test_data(str(tmp_path / "split"), **model)) == {"test": 1}


def test_what_looks_like_masks(tmp_path: Path, monkeypatch) -> None:
    assert is_masked(write_pairs(tmp_path, 1))
    monkeypatch.chdir(tmp_path)
    assert is_masked("brain")
    assert not is_masked("elpv")
    assert not is_masked("images/0.png")
    (tmp_path / "brain").mkdir()
    assert not is_masked("brain")
