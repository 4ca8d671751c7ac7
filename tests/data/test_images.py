from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from snella.data.images import ImageFiles, UnreadableImage, image_files, image_size, images_below, open_image, to_rgb
from snella.errors import UserError
from support.broken_images import broken_files


def test_an_ordinary_image_is_read_unchanged(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    read = np.asarray(open_image(tmp_path / f"a.{suffix}"))
    expected = np.round(ramp / 65535 * 255).astype(np.uint8)
    assert np.array_equal(read, np.repeat(expected[..., None], 3, axis=2))


@given(arrays(np.uint16, (3, 4), elements=st.integers(0, 65535)))
def test_16_bit_scaling_keeps_order_and_ends(values: np.ndarray) -> None:
    scaled = np.asarray(to_rgb(Image.fromarray(values), "x"))[..., 0].astype(float)
    assert np.abs(scaled / 255 - values / 65535).max() <= 0.5 / 255 + 1e-9


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10), "black")
    image.paste("white", (0, 0, 10, 10))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by 90 degrees: left becomes top
    for name in ("a.jpg", "a.png", "a.tif", "a.webp"):
        image.save(tmp_path / name, exif=exif, quality=95)
        shown = open_image(tmp_path / name)
        assert shown.size == (10, 20) == image_size(tmp_path / name)
        pixels = np.asarray(shown)
        assert pixels[:8].mean() > 250
        assert pixels[-8:].mean() < 5


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    suffix = {"CMYK": "jpg", "YCbCr": "jpg"}.get(mode, "png")
    white = Image.new("RGB", (16, 16), "white").convert(mode)
    white.save(tmp_path / f"a.{suffix}")
    image = open_image(tmp_path / f"a.{suffix}")
    assert image.mode == "RGB"
    assert np.asarray(image).min() >= 253


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_each_unreadable_file_says_why(tmp_path: Path) -> None:
    for name, reason in broken_files(tmp_path).items():
        with pytest.raises(UnreadableImage) as caught:
            open_image(tmp_path / name)
        assert reason in caught.value.reason, name
        assert str(caught.value) == f"{tmp_path / name}: {caught.value.reason}"
        assert "\n" not in str(caught.value)


def test_unreadable_image_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("a.jpg", "broken")))
    assert (error.path, error.reason, str(error)) == ("a.jpg", "broken", "a.jpg: broken")


def test_images_below_are_sorted_and_without_hidden_ones(tmp_path: Path, picture) -> None:
    for name in ("b/2.png", "b/1.PNG", "a.jpg", ".hidden/x.png", "b/._1.png", "__MACOSX/y.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    assert images_below(str(tmp_path)) == ["a.jpg", "b/1.PNG", "b/2.png"]


def test_image_files_takes_files_and_folders(tmp_path: Path, picture) -> None:
    single, below = picture(tmp_path / "x.png"), picture(tmp_path / "d" / "y.png")
    assert image_files([single, tmp_path / "d", single]) == (single, below, single)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        image_files([tmp_path / "none"])
    with pytest.raises(UserError, match=r"did you mean .*x\.png"):
        image_files([tmp_path / "xx.png"])


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A JPEG of 800 x 400 pixels, lying on its side: 400 x 800 as shown."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 255, (20, 40, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    coarse.resize((800, 400), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95, exif=exif)
    return tmp_path / "a.jpg"


@pytest.mark.parametrize(
    ("enough", "size"), [(None, (400, 800)), (401, (400, 800)), (201, (400, 800)), (200, (200, 400)), (60, (100, 200))]
)
def test_a_photograph_is_decoded_as_small_as_is_enough(
    photograph: Path, enough: int | None, size: tuple[int, int]
) -> None:
    found = ImageFiles(enough=enough)(photograph)
    assert found.size == size == image_size(photograph, enough)
    expected = open_image(photograph).resize(size, Image.Resampling.BOX)
    assert np.abs(np.asarray(found, np.int16) - np.asarray(expected, np.int16)).mean() < 3


def test_other_formats_are_decoded_whole(photograph: Path, tmp_path: Path) -> None:
    open_image(photograph).save(tmp_path / "a.png")
    assert ImageFiles(enough=10)(tmp_path / "a.png").size == (400, 800)
