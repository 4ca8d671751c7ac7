from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snella.data.masks.files import IGNORE, MaskCode
from snella.data.readers.masked import read_masked_data
from support.masked import refusal, write_image, write_mask, write_pairs, write_polyps


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif"])
def test_polyps(tmp_path: Path, ending: str) -> None:
    disc = write_polyps(tmp_path, ending)
    if ending == ".jpg":
        assert len(np.unique(np.asarray(Image.open(tmp_path / "masks" / "0.jpg")))) > 2  # noise there is
    data = read_masked_data(str(tmp_path), seed=0)
    assert data.classes == ("background", "foreground")
    assert data.code == MaskCode((0, 255), binary=True)
    assert torch.equal(data.splits["val"][0]["mask"].bool(), torch.from_numpy(disc))
    assert data.pixels["test"] == (2 * int((~disc).sum()), 2 * int(disc.sum()))
    assert "masks of two levels: grey above half is foreground" in data.notes


def test_how_much_is_grey_counts_not_how_many_greys(tmp_path: Path) -> None:
    """Soft edges hold many greys in few pixels; a third level is one grey in many."""
    write_polyps(tmp_path, ".jpg")
    soft = np.zeros((40, 48), dtype=np.uint8)
    soft[:, 24:] = 255
    soft[0, :] = range(70, 166, 2)
    Image.fromarray(soft).save(tmp_path / "masks" / "3.jpg", quality=100)
    assert read_masked_data(str(tmp_path), seed=0).code.binary
    soft[:30] = 128
    Image.fromarray(soft).save(tmp_path / "masks" / "3.jpg", quality=100)
    assert "stands for no class (0 or 255; 75% of it is grey)" in refusal(tmp_path)


def test_two_levels_with_a_names_file(tmp_path: Path) -> None:
    write_polyps(tmp_path, ".jpg")
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


def test_photographs_are_not_masks(tmp_path: Path) -> None:
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
    assert data.splits["val"][0]["mask"].unique().tolist() == [IGNORE, 0, 1]
    assert data.pixels["val"] == (40, 40)


def test_one_class_is_refused(tmp_path: Path) -> None:
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
    assert data.splits["train"][0]["mask"].flatten().tolist() == [2, 1, 0] * 40
    data = read_masked_data(str(tmp_path), seed=0, ignore_index=0)
    assert data.classes == ("sky", "road")
    assert data.splits["train"][0]["mask"].flatten().tolist() == [IGNORE, 1, 0] * 40
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
