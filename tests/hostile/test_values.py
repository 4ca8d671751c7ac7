"""Right values: what a pixel is once its file is read, in every format and mode that people have."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from snella.data.checks import look_at_file, white_of
from snella.data.images import UnreadableImage, image_size, open_image
from snella.data.masks.files import mask_pixels

Make = Callable[[Path], object]
GREY = np.full((6, 5), 100, np.uint8)
RED = (200, 30, 10)


def saved(image: Image.Image, suffix: str, **options: object) -> tuple[str, Make]:
    return suffix, lambda path: image.save(path, **options)  # pyright: ignore[reportArgumentType]


def filled(mode: str, color: object, suffix: str, **options: object) -> tuple[str, Make]:
    return saved(Image.new(mode, (5, 6), color), suffix, **options)  # pyright: ignore[reportArgumentType]


def array(values: np.ndarray, suffix: str, **options: object) -> tuple[str, Make]:
    return saved(Image.fromarray(values), suffix, **options)


def png(values: np.ndarray, depth: int, kind: int, *chunks: tuple[bytes, bytes]) -> tuple[str, Make]:
    """A PNG with these samples, (h, w, channels), whatever Pillow writes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    def make(path: Path) -> None:
        height, width = values.shape[:2]
        rows = values.astype(">u2" if depth == 16 else np.uint8).reshape(height, -1)
        content = b"".join(b"\0" + row.tobytes() for row in rows)
        header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
        parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(content)), (b"IEND", b"")]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))

    return ".png", make


def palette(suffix: str, **options: object) -> tuple[str, Make]:
    image = Image.fromarray(np.ones((6, 5), np.uint8), mode="P")
    image.putpalette([0, 0, 0, *RED])
    return saved(image, suffix, **options)


def netpbm(suffix: str, head: bytes, body: bytes) -> tuple[str, Make]:
    return suffix, lambda path: path.write_bytes(head + body)


def tiff(mode: str, color: object, tags: dict[int, object]) -> tuple[str, Make]:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[tag] = value
    return filled(mode, color, ".tif", tiffinfo=info)


def rgb(*samples: int) -> np.ndarray:
    return np.tile(np.array(samples), (6, 5, 1))


def wide(value: int) -> np.ndarray:
    return np.full((6, 5), value, np.uint16)


# name -> how the file is made, the colour that a person sees in it, and by how much a lossy format may miss it
COLORS: dict[str, tuple[tuple[str, Make], tuple[int, int, int], int]] = {
    "RGB png": (filled("RGB", RED, ".png"), RED, 0),
    "RGB bmp": (filled("RGB", RED, ".bmp"), RED, 0),
    "RGB tif": (filled("RGB", RED, ".tif"), RED, 0),
    "RGB tif lzw": (filled("RGB", RED, ".tif", compression="tiff_lzw"), RED, 0),
    "RGB tif deflate": (filled("RGB", RED, ".tif", compression="tiff_adobe_deflate"), RED, 0),
    "RGB ppm": (filled("RGB", RED, ".ppm"), RED, 0),
    "RGB webp lossless": (filled("RGB", RED, ".webp", lossless=True), RED, 0),
    "RGB webp": (filled("RGB", RED, ".webp", quality=95), RED, 6),
    "RGB jpeg": (filled("RGB", RED, ".jpg", quality=95), RED, 4),
    "RGB jpeg 2000": (filled("RGB", RED, ".jp2"), RED, 1),
    "grey png": (array(GREY, ".png"), (100, 100, 100), 0),
    "grey jpeg": (array(GREY, ".jpg", quality=95), (100, 100, 100), 2),
    "grey gif": (array(GREY, ".gif"), (100, 100, 100), 0),
    "1-bit white png": (filled("1", 1, ".png"), (255, 255, 255), 0),
    "1-bit white tif": (filled("1", 1, ".tif"), (255, 255, 255), 0),
    "1-bit white tif, group 4": (filled("1", 1, ".tif", compression="group4"), (255, 255, 255), 0),
    "1-bit black bitmap": (netpbm(".pbm.ppm", b"P4\n5 6\n", b"\xff" * 6), (0, 0, 0), 0),
    "palette png": (palette(".png"), RED, 0),
    "palette gif": (palette(".gif"), RED, 0),
    "palette bmp": (palette(".bmp"), RED, 0),
    "palette tif": (palette(".tif"), RED, 0),
    "palette png, another index clear": (palette(".png", transparency=0), RED, 0),
    "palette png, this index clear": (palette(".png", transparency=1), (255, 255, 255), 0),
    "palette gif, this index clear": (palette(".gif", transparency=1), (255, 255, 255), 0),
    "palette png, half clear": (palette(".png", transparency=b"\xff\x80"), (227, 142, 132), 1),
    "RGBA, opaque": (filled("RGBA", (*RED, 255), ".png"), RED, 0),
    "RGBA, black icon on nothing": (filled("RGBA", (0, 0, 0, 0), ".png"), (255, 255, 255), 0),
    "RGBA, half black": (filled("RGBA", (0, 0, 0, 128), ".png"), (127, 127, 127), 1),
    "RGBA, hidden red": (filled("RGBA", (*RED, 0), ".png"), (255, 255, 255), 0),
    "RGBA webp": (filled("RGBA", (0, 0, 0, 0), ".webp", lossless=True), (255, 255, 255), 0),
    "RGBA tif": (filled("RGBA", (0, 0, 0, 0), ".tif"), (255, 255, 255), 0),
    "LA, opaque": (filled("LA", (100, 255), ".png"), (100, 100, 100), 0),
    "LA, half black": (filled("LA", (0, 128), ".png"), (127, 127, 127), 1),
    "LA, clear": (filled("LA", (0, 0), ".png"), (255, 255, 255), 0),
    "RGB with a clear colour": (png(rgb(*RED), 8, 2, (b"tRNS", struct.pack(">HHH", *RED))), (255, 255, 255), 0),
    "RGB, another colour clear": (png(rgb(*RED), 8, 2, (b"tRNS", struct.pack(">HHH", 0, 0, 0))), RED, 0),
    "grey with a clear level": (png(rgb(100), 8, 0, (b"tRNS", struct.pack(">H", 100))), (255, 255, 255), 0),
    "16-bit grey with a clear level": (png(rgb(700), 16, 0, (b"tRNS", struct.pack(">H", 700))), (255, 255, 255), 0),
    "16-bit grey png": (array(wide(25_700), ".png"), (100, 100, 100), 0),
    "16-bit grey tif": (array(wide(25_700), ".tif"), (100, 100, 100), 0),
    "16-bit tif, big endian": (saved(Image.frombytes("I;16B", (5, 6), b"\x64\x64" * 30), ".tif"), (100, 100, 100), 0),
    "16-bit grey pgm": (netpbm(".pgm", b"P5\n5 6\n65535\n", b"\x64\x64" * 30), (100, 100, 100), 0),
    "12-bit grey pgm": (netpbm(".pgm", b"P5\n5 6\n4095\n", struct.pack(">H", 1606) * 30), (100, 100, 100), 1),
    "12-bit ppm": (netpbm(".ppm", b"P6\n5 6\n4095\n", struct.pack(">HHH", 4095, 0, 1606) * 30), (255, 0, 100), 1),
    "16-bit colours png": (png(rgb(51_400, 7_710, 2_570), 16, 2), RED, 0),
    "16-bit colours png, clear": (png(rgb(51_400, 7_710, 2_570, 0), 16, 6), (255, 255, 255), 0),
    "CMYK jpeg": (filled("CMYK", (0, 255, 255, 0), ".jpg", quality=95), (254, 0, 0), 4),
    "CMYK tif": (filled("CMYK", (0, 255, 255, 0), ".tif"), (255, 0, 0), 0),
    "YCbCr tif": (filled("YCbCr", (100, 128, 128), ".tif"), (100, 100, 100), 1),
    "resolution alone": (tiff("L", 100, {282: 300.0, 283: 300.0}), (100, 100, 100), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", COLORS)
def test_a_pixel_is_what_a_person_sees(name: str, tmp_path: Path) -> None:
    (suffix, make), expected, tolerance = COLORS[name]
    path = tmp_path / f"a{suffix}"
    make(path)
    pixels = np.asarray(open_image(path)).astype(int)
    assert pixels.shape == (6, 5, 3)
    assert np.abs(pixels - expected).max() <= tolerance


# name -> how the file is made, and what the refusal must say
REFUSED: dict[str, tuple[tuple[str, Make], str]] = {
    "float tif, 0 to 1": (array(np.full((6, 5), 0.5, np.float32), ".tif"), "floating-point values"),
    "float tif, 0 to 255": (array(np.full((6, 5), 100.0, np.float32), ".tif"), "floating-point values"),
    "32-bit tif": (array(np.full((6, 5), 70_000, np.int32), ".tif"), "32-bit values"),
    "signed tif below 0": (array(np.full((6, 5), -3, np.int32), ".tif"), "values below 0"),
    "16-bit tif, 0 is white": (tiff("I;16", 700, {262: 0}), "whose value 0 is white"),
    "12-bit colours png": (png(rgb(4_000, 600, 100), 16, 2), "16-bit colours that use 12 bits or fewer"),
    "8-bit values in 16-bit colours": (png(rgb(*RED), 16, 2), "16-bit colours that use 12 bits or fewer"),
    "12-bit colours with transparency": (png(rgb(4_000, 600, 100, 65_535), 16, 6), "use 12 bits or fewer"),
    "12-bit grey with transparency": (png(rgb(4_000, 65_535), 16, 4), "use 12 bits or fewer"),
    "pages": (filled("L", 9, ".tif", save_all=True, append_images=[Image.new("L", (5, 6), 7)]), "2 frames"),
    "animated png": (filled("L", 9, ".png", save_all=True, append_images=[Image.new("L", (5, 6), 7)]), "2 frames"),
    "animated webp": (filled("RGB", RED, ".webp", save_all=True, append_images=[Image.new("RGB", (5, 6))]), "2 frames"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_certain_value_is_refused(name: str, tmp_path: Path) -> None:
    (suffix, make), reason = REFUSED[name]
    path = tmp_path / f"a{suffix}"
    make(path)
    for read in (open_image, look_at_file):
        with pytest.raises(UnreadableImage) as caught:
            read(path if read is open_image else str(path))  # pyright: ignore[reportArgumentType]
        assert reason in caught.value.reason


def test_lab_is_converted_where_pillow_can_and_refused_elsewhere(tmp_path: Path) -> None:
    Image.new("LAB", (5, 6), (136, 208, 195)).save(tmp_path / "a.tif")  # CIE 53, 80, 67: red
    try:
        pixels = np.asarray(open_image(tmp_path / "a.tif")).astype(int)
    except UnreadableImage:
        pixels = np.array((255, 0, 0))
    assert np.abs(pixels - (255, 0, 0)).max() <= 12


@pytest.mark.parametrize(
    ("values", "white"),
    [((1,), 1), ((7, 255), 255), ((1_000,), 1023), ((12, 4_013), 4095), ((16_000,), 16_383), ((17_000,), 65_535)],
)
def test_white_is_the_largest_value_of_the_bits_in_use(values: tuple[int, ...], white: int, tmp_path: Path) -> None:
    widest = []
    for i, value in enumerate(values):
        Image.fromarray(wide(value)).save(tmp_path / f"{i}.png")
        widest.append(look_at_file(str(tmp_path / f"{i}.png")).widest or 0)
    assert white_of(widest) == white


@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 4000])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_sizes_by_the_header_are_those_of_the_pixels(orientation: int, suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (20, 10)).save(tmp_path / f"a.{suffix}", exif=exif)
    shown = open_image(tmp_path / f"a.{suffix}")
    assert image_size(tmp_path / f"a.{suffix}") == shown.size == ((10, 20) if orientation in (5, 6, 7, 8) else (20, 10))


# name -> how the mask is made, and the value of its pixels
MASKS: dict[str, tuple[tuple[str, Make], int]] = {
    "grey": (filled("L", 2, ".png"), 2),
    "palette": (palette(".png"), 1),
    "palette, clear": (palette(".png", transparency=1), 1),
    "1-bit": (filled("1", 1, ".png"), 255),
    "16-bit": (array(wide(300), ".png"), 300),
    "32-bit": (array(np.full((6, 5), 300, np.int32), ".tif"), 300),
    "grey with transparency": (filled("LA", (2, 255), ".png"), 2),
    "grey as colours": (filled("RGB", (2, 2, 2), ".png"), 2),
    "grey as colours with transparency": (filled("RGBA", (2, 2, 2, 255), ".png"), 2),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_masks_value_is_what_the_file_holds(name: str, tmp_path: Path) -> None:
    (suffix, make), value = MASKS[name]
    make(tmp_path / f"m{suffix}")
    pixels, _ = mask_pixels(str(tmp_path / f"m{suffix}"))
    assert pixels.shape == (6, 5)
    assert (pixels == value).all()


@pytest.mark.parametrize("name", ["12-bit colours png", "16-bit tif, 0 is white", "float tif, 0 to 1", "pages"])
def test_a_mask_without_certain_values_is_refused(name: str, tmp_path: Path) -> None:
    (suffix, make), _ = REFUSED[name]
    make(tmp_path / f"m{suffix}")
    with pytest.raises(UnreadableImage):
        mask_pixels(str(tmp_path / f"m{suffix}"))
