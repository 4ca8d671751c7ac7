"""Image files to RGB: every file gives the picture that a person would see, or says why it cannot.

Nothing is guessed: a file that is cut short, holds several pictures or has no fixed range of values is unreadable
rather than half read, because a silent wrong picture costs more than a missing one.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, ImageStat, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torchvision.datasets.folder import IMG_EXTENSIONS

from snella.data.paths import check_exists
from snella.errors import UserError, error_number, short_reason

# no faults of an image, which must not be left out for them
OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # too many open files, no memory
MAX_PIXELS = 100_000_000  # beyond this a decode takes seconds and several hundred MB
WHITE = 65_535  # the value of 16-bit greys that becomes 255, unless others are named
DARKEST = 16  # of 256: 16-bit colours that stay below are not colours of that range
ORIENTATION = 0x0112  # EXIF and TIFF: 1 to 8
PHOTOMETRIC = 0x0106  # TIFF: 0 where the value 0 is white

# what Pillow does not read is looked for too (.heic), so that it is named and not passed over in silence
SUFFIXES = (*IMG_EXTENSIONS, ".jfif", ".jpe", ".tga", ".gif", ".avif", ".jp2", ".heic", ".heif")
# folders that archives, network drives and Windows add
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")

Progress = Callable[[int, int], None]  # images done, images in all


class UnreadableImage(Exception):  # noqa: N818 (a finding to report, seldom a failure)
    """An image that cannot be used: `path` names it, `reason` says why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both in args: the error crosses process borders by pickle
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class ImageReader(ABC):
    """Reads encoded images by name as 8-bit RGB, as a person would see them. Subclasses say where they are.

    The EXIF orientation is applied, 16-bit greys are scaled to 8 bits, CMYK and palettes are converted, and what is
    transparent shows white. Of a JPEG that carries further views (MPO) the main one is read.

    Args:
        white: the value of 16-bit greys that becomes 255: that of the data set, so that all are scaled alike.

    Raises:
        UnreadableImage: missing, empty, broken, truncated, several frames, values above white, over 100 megapixels.
    """

    white: int = WHITE

    @abstractmethod
    def decoded(self, name: str) -> Image.Image:
        """Return an image in its own mode, upright."""

    def file(self, name: str) -> str:
        """Return the path of the file that an image is in, which need not be there; "" where it is in none."""
        return ""

    def __call__(self, name: str | os.PathLike[str]) -> Image.Image:
        with failures_of(str(name)):
            return to_rgb(self.decoded(str(name)), str(name), white=self.white)


@dataclass(frozen=True)
class ImageFiles(ImageReader):
    """Reads image files: `open_image(path)`.

    Args:
        enough: shorter side in pixels, down to which a JPEG may be decoded at a half, a quarter or an eighth of its
            sides, in a fraction of the time and memory. None: as it is.
    """

    enough: int | None = None

    def decoded(self, name: str) -> Image.Image:
        with decoding(name, name) as image:
            reduce_to(image, self.enough)
            return upright(image, name)

    def file(self, name: str) -> str:
        return name


open_image = ImageFiles()


def decode(file: str | os.PathLike[str] | BinaryIO, name: str) -> Image.Image:
    """Decode a path or an open binary file, upright, in its own mode; `name` is what the error calls it."""
    with decoding(file, name) as image:
        return upright(image, name)


def reduce_to(image: Image.Image, enough: int | None) -> None:
    """Have an open JPEG decoded smaller where its shorter side stays `enough` pixels; others stay as they are."""
    if enough is not None and image.format in ("JPEG", "MPO"):
        image.draft(None, (enough, enough))


@contextmanager
def decoding(file: str | os.PathLike[str] | BinaryIO, name: str) -> Iterator[Image.Image]:
    """Open an image and close it; whatever goes wrong with it inside is an UnreadableImage."""
    with failures_of(name), open_checked(file, name) as image:
        yield image


@contextmanager
def failures_of(name: str) -> Iterator[None]:
    """Turn whatever goes wrong with an image inside into an UnreadableImage."""
    try:
        yield
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders raise whatever broken bytes lead them to
        if isinstance(error, MemoryError) or error_number(error) in OF_THE_MACHINE:
            raise
        raise UnreadableImage(name, decode_failure(error)) from None


def upright(image: Image.Image, name: str) -> Image.Image:
    """Decode an open file's image, turned as its EXIF orientation says.

    Raises:
        UnreadableImage: a 16-bit file of which Pillow would give other values than those that it holds.
    """
    if isinstance(image, TiffImageFile) and is_wide(image) and image.tag_v2.get(PHOTOMETRIC) == 0:
        raise UnreadableImage(name, "16-bit TIFF whose value 0 is white; save it with 0 as black")
    tile = getattr(image, "tile", None)  # of files alone, until they are decoded
    codec = tile[0][3] if tile else ""
    layout = codec if isinstance(codec, str) else str(codec[0]) if codec else ""
    if ";16" in layout and not is_wide(image):  # colours: Pillow keeps the upper eight bits of each value
        highest = [high for _, high in ImageStat.Stat(image.convert("RGB")).extrema]
        if max(highest) < DARKEST:
            raise UnreadableImage(name, "16-bit colours that use 12 bits or fewer; save as 8 bits a channel")
    return ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image, name: str, *, white: int = WHITE) -> Image.Image:
    """Convert any Pillow mode to 8-bit RGB. 16-bit greys are scaled, white to 255; Pillow itself would clip them."""
    if is_wide(image):
        values = wide_values(image, name)
        if values.max(initial=0) > white:
            raise UnreadableImage(name, f"values up to {values.max()}, and {white} is white in these data; see --white")
        scaled = _to_8_bits(white)[values]
        if isinstance(clear := image.info.get("transparency"), int):
            scaled[values == clear] = 255
        return Image.fromarray(scaled).convert("RGB")
    if image.mode == "F":
        raise UnreadableImage(name, "floating-point values have no fixed range; save as 8 or 16 bits")
    if not is_transparent(image):
        return image.convert("RGB")
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def is_wide(image: Image.Image) -> bool:
    """Tell whether values are grey levels of 16 bits: I;16, I;16B, and I, as Pillow has 16-bit PGM and old PNG."""
    return image.mode.startswith("I")


def wide_values(image: Image.Image, name: str) -> np.ndarray:
    """Return the grey levels of a wide image, (h, w) uint16. Raises UnreadableImage where they are more or less."""
    values = np.asarray(image)
    if values.dtype.itemsize > 2:
        if values.min(initial=0) < 0:
            raise UnreadableImage(name, "values below 0; save as 8 or 16 bits without a sign")
        if values.max(initial=0) > WHITE:
            raise UnreadableImage(name, "32-bit values; save as 8 or 16 bits")
    return values.astype(np.uint16, copy=False)


@lru_cache(maxsize=4)
def _to_8_bits(white: int) -> np.ndarray:
    """Return the 8-bit value of each 16-bit one, (65536,) uint8; those above white are not asked for."""
    return np.minimum((np.arange(WHITE + 1, dtype=np.int64) * 255 + white // 2) // white, 255).astype(np.uint8)


def is_transparent(image: Image.Image) -> bool:
    """Tell whether an image may have pixels that do not cover: by a channel, or by a colour that stands for none."""
    return image.mode.endswith(("A", "a")) or "transparency" in image.info


def image_size(path: str | os.PathLike[str], enough: int | None = None) -> tuple[int, int]:
    """Return width and height as displayed, in pixels, from the header alone, of what `ImageFiles` reads.

    Raises:
        UnreadableImage: as `ImageFiles`.
    """
    with decoding(path, str(path)) as image:
        reduce_to(image, enough)
        return shown_size(image)


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an open file's image as displayed."""
    # EXIF orientations 5 to 8 swap the sides; of a TIFF Pillow has done so (`exif_transpose` knows)
    turned = image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def image_files(paths: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Return files as they are given, twice where they are named twice, folders as the images below them, sorted.

    Raises:
        UserError: a path that does not exist (with near names), a folder without images.
    """
    found: list[str] = []
    for path in map(str, paths):
        check_exists(path)
        if os.path.isdir(path):
            below = images_below(path)
            if not below:
                raise UserError(f"{path} holds no image ({', '.join(SUFFIXES)}); give image files or a folder of them")
            found += [os.path.join(path, name) for name in below]
        else:
            found.append(path)
    return tuple(found)


def images_below(folder: str) -> list[str]:
    """Return the image files at any depth below a folder: sorted names relative to it, with "/" on every system.

    Links to folders are followed, once each; hidden files and folders are passed over.
    """
    found: list[str] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        prefix = os.path.relpath(parent, folder)
        for name in files:
            if is_image(name):
                found.append(name if prefix == "." else f"{prefix}/{name}".replace(os.sep, "/"))
    return sorted(found)


def is_image(name: str) -> bool:
    return not is_hidden(name) and name.lower().endswith(SUFFIXES)


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FOLDERS


def open_checked(file: str | os.PathLike[str] | BinaryIO, name: str) -> Image.Image:
    if isinstance(file, (str, os.PathLike)):
        found = os.stat(file)
        if not stat.S_ISREG(found.st_mode):  # to open a pipe or a device would wait for ever
            raise UnreadableImage(name, "not a file" if not stat.S_ISDIR(found.st_mode) else "a folder, not a file")
        if found.st_size == 0:
            raise UnreadableImage(name, "empty file (0 bytes)")
    image = Image.open(file)
    try:
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImage(name, f"{image.width} x {image.height} pixels; shrink it below 100 megapixels")
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # phones write ordinary photographs as MPO
            raise UnreadableImage(name, f"{frames} frames (animation or pages); save the one that is meant")
    except BaseException:
        image.close()
        raise
    return image


def decode_failure(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or in a format that Pillow does not read"
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels; shrink it below 100 megapixels"
    return short_reason(error)


def _raise(error: OSError) -> None:
    raise error
