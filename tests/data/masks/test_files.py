from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.tv_tensors import Mask

from snella.data.images import UnreadableImage
from snella.data.masks.files import IGNORE, MaskCode, MaskedImages, read_mask, to_classes
from snella.errors import UserError

VALUES = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [0, 0, 3, 3]], dtype=np.uint8)
FOUR = MaskCode((0, 1, 2, 3))
TWO = MaskCode((0, 255), binary=True)


def save(path: Path, values: np.ndarray, mode: str | None = None, **options) -> str:
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(path, **options)
    return str(path)


def refusal(path: str, code: MaskCode) -> str:
    with pytest.raises(UnreadableImage) as caught:
        read_mask(path, code)
    assert caught.value.path == path
    return caught.value.reason


@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA", "LA", "P", "I;16", "bmp", "tif", "tif16"])
def test_every_way_to_write_a_value(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.png"
    if kind == "P":
        image = Image.fromarray(VALUES).convert("P")
        image.putdata(VALUES.ravel().tolist())
        image.putpalette([9, 8, 7] * 4)  # the index counts, not the colour
        image.save(path)
    elif kind == "I;16":
        save(path, VALUES.astype(np.uint16))
    elif kind.startswith("tif"):
        path = tmp_path / "m.tif"
        save(path, VALUES.astype(np.uint16) if kind == "tif16" else VALUES)
    elif kind == "bmp":
        path = tmp_path / "m.bmp"
        save(path, VALUES)
    else:
        save(path, VALUES, kind)
    mask = read_mask(str(path), FOUR)
    assert mask.dtype == torch.int16
    assert mask.tolist() == VALUES.tolist()


def test_sixteen_bits_are_not_scaled(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.array([[0, 300], [65535, 40000]], dtype=np.uint16))
    code = MaskCode((0, 300, 40000), ignore=(65535,))
    assert read_mask(path, code).tolist() == [[0, 1], [IGNORE, 2]]
    assert "value 40000 stands for no class (0, 300)" in refusal(path, MaskCode((0, 300), ignore=(65535,)))


@given(st.data())
def test_the_class_is_the_position_of_the_value(data: st.DataObject) -> None:
    """Against a dictionary, pixel by pixel."""
    values = data.draw(st.lists(st.integers(0, 65535), min_size=2, max_size=8, unique=True))
    cut = data.draw(st.integers(1, len(values)))
    code = MaskCode(tuple(values[:cut]), ignore=tuple(values[cut:]))
    pixels = data.draw(st.lists(st.sampled_from(values), min_size=1, max_size=20))
    expected = [values.index(value) if value in values[:cut] else IGNORE for value in pixels]
    assert to_classes(np.array([pixels], dtype=np.uint16), code, "m").tolist() == [expected]


def test_an_unknown_value_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.array([[0, 7]], dtype=np.uint8))
    assert refusal(path, FOUR) == "value 7 stands for no class (0 to 3)"
    assert read_mask(path, MaskCode((0, 1), ignore=(7,))).tolist() == [[0, IGNORE]]


def test_colours(tmp_path: Path) -> None:
    colors = np.array([[[200, 10, 20], [0, 0, 0], [255, 255, 255]]], dtype=np.uint8)
    path = save(tmp_path / "m.png", colors)
    code = MaskCode((0, 1), ((0, 0, 0), (200, 10, 20)), ignore=(255,))
    assert read_mask(path, code).tolist() == [[1, 0, IGNORE]]
    assert "colour (255, 255, 255) stands for no class" in refusal(path, MaskCode((0, 1), code.colors))
    assert "colours where grey levels" in refusal(path, FOUR)
    black = save(tmp_path / "black.png", np.zeros((1, 2), dtype=np.uint8))
    assert read_mask(black, code).tolist() == [[0, 0]]


def test_a_grey_mask_of_two_levels_is_cut_at_the_half(tmp_path: Path) -> None:
    inside = np.zeros((32, 32), dtype=bool)
    inside[8:24, 4:20] = True
    for name in ("m.jpg", "m.png"):
        for mode in ("L", "RGB"):
            path = save(tmp_path / name, inside.astype(np.uint8) * 255, mode)
            assert torch.equal(read_mask(path, TWO), torch.from_numpy(inside).short())
    path = save(tmp_path / "bits.png", inside)
    assert Image.open(path).mode == "1"
    assert torch.equal(read_mask(path, TWO), torch.from_numpy(inside).short())
    noisy = np.clip(inside * 255 + np.random.default_rng(0).normal(0, 15, inside.shape), 0, 255).astype(np.uint8)
    assert torch.equal(read_mask(save(tmp_path / "noisy.png", noisy), TWO), torch.from_numpy(inside).short())
    edge = save(tmp_path / "edge.png", np.array([[127, 0, 0, 0, 0, 0, 255, 255, 128]], dtype=np.uint8))
    assert read_mask(edge, TWO).tolist() == [[0, 0, 0, 0, 0, 0, 1, 1, 1]]


def test_a_jpeg_may_be_a_little_tinted(tmp_path: Path) -> None:
    tinted = np.zeros((16, 16, 3), dtype=np.uint8)
    tinted[:, 8:] = (250, 255, 248)
    mask = read_mask(save(tmp_path / "m.jpg", tinted, quality=95, subsampling=0), TWO)
    assert mask.tolist() == [[0] * 8 + [1] * 8] * 16


def test_a_mask_is_turned_as_its_image_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    path = save(tmp_path / "m.png", VALUES, exif=exif)
    assert read_mask(path, FOUR).tolist() == np.rot90(VALUES, -1).tolist()


def test_what_is_not_of_two_levels_is_refused(tmp_path: Path) -> None:
    ones = save(tmp_path / "ones.png", np.array([[0, 1]], dtype=np.uint8))
    assert "value 1 stands for no class (0 or 255)" in refusal(ones, TWO)
    grey = save(tmp_path / "grey.png", np.array([[0, 128, 255]], dtype=np.uint8))
    assert "value 128 stands for no class" in refusal(grey, TWO)
    assert read_mask(grey, MaskCode((0, 255), ignore=(128,), binary=True)).tolist() == [[0, IGNORE, 1]]
    empty = save(tmp_path / "empty.png", np.zeros((2, 2), dtype=np.uint8))
    assert not read_mask(empty, TWO).any()


def test_files_that_are_not_masks(tmp_path: Path) -> None:
    (tmp_path / "m.png").write_bytes(b"")
    assert refusal(str(tmp_path / "m.png"), FOUR) == "empty file (0 bytes)"
    assert "no such file" in refusal(str(tmp_path / "gone.png"), FOUR)
    photo = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert "coloured JPEG" in refusal(save(tmp_path / "photo.jpg", photo), FOUR)
    assert "floating-point" in refusal(save(tmp_path / "f.tif", np.zeros((2, 2), dtype=np.float32)), FOUR)
    assert "32-bit" in refusal(save(tmp_path / "i.tif", np.full((2, 2), 70_000, dtype=np.int32)), FOUR)


@pytest.mark.parametrize(
    "code", [FOUR, TWO, MaskCode((0, 1), ((1, 2, 3), (4, 5, 6)), (255, 0)), MaskCode(tuple(range(1, 151)), ignore=(0,))]
)
def test_the_code_survives_json(code: MaskCode) -> None:
    assert MaskCode.from_dict(json.loads(json.dumps(code.to_dict()))) == code
    with pytest.raises(UserError, match="mask code has"):
        MaskCode.from_dict({**code.to_dict(), "colour": 1})


def test_examples(tmp_path: Path, picture) -> None:
    image, mask = picture(tmp_path / "a.png", (4, 3)), save(tmp_path / "m.png", VALUES)
    images = pickle.loads(pickle.dumps(MaskedImages((image,), (mask,), FOUR)))
    assert len(images) == 1
    example = images[0]
    assert isinstance(example["mask"], Mask)
    assert (example["image"].mode, example["image"].size) == ("RGB", (4, 3))
    assert (example["mask"].dtype, example["mask"].tolist()) == (torch.int16, VALUES.tolist())
    assert list(MaskedImages((image,))[0]) == ["image"]
    with pytest.raises(ValueError, match="1 paths but 2 masks"):
        MaskedImages((image,), (mask, mask), FOUR)


def test_sizes_must_agree(tmp_path: Path, picture) -> None:
    image, mask = picture(tmp_path / "a.png"), save(tmp_path / "m.png", np.zeros((10, 10), dtype=np.uint8))
    with pytest.raises(UnreadableImage) as caught:
        MaskedImages((image,), (mask,), FOUR)[0]
    assert (caught.value.path, caught.value.reason) == (image, "mask is 10 x 10, image 12 x 10")
