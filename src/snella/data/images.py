"""Image files to RGB: every file gives the picture that a person would see, or says why it cannot.

Nothing is guessed: a file that is cut short, holds several pictures or has no fixed range of values is unreadable
rather than half read, because a silent wrong picture costs more than a missing one.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS

from snella.data.paths import check_exists
from snella.errors import UserError, error_number, short_reason

OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # too many open files, no memory
MAX_PIXELS = 100_000_000  # beyond this a decode takes seconds and several hundred MB
CHECK_ALL = 20_000  # more images than this: only their headers are read before training

# what Pillow does not read is looked for too (.heic), so that it is named and not passed over in silence
SUFFIXES = (*IMG_EXTENSIONS, ".gif", ".avif", ".jp2", ".heic", ".heif")

Progress = Callable[[int, int], None]  # images done, images in all


class UnreadableImage(Exception):  # noqa: N818 (a finding to report, seldom a failure)
    """An image that cannot be used: `path` names it, `reason` says why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both in args: the error crosses process borders by pickle
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image file as 8-bit RGB with its EXIF orientation applied.

    16-bit greys are scaled to 8 bits over their whole range, CMYK and palettes are converted, transparency is
    dropped (as torchvision does). Of a JPEG that carries further views (MPO) the main one is read.

    Raises:
        UnreadableImage: missing, empty, broken, truncated, several frames, 32-bit values, over 100 megapixels.
    """
    return decode(path, str(path))


def decode(file: str | os.PathLike[str] | BinaryIO, name: str, *, draft: bool = False) -> Image.Image:
    """Read a path or an open binary file as `open_image` does; `name` is what the error calls it.

    A draft may be smaller than the image (JPEG at 1/8 of its size): all of the file is read in a third of the time.
    """
    try:
        with open_checked(file, name) as image:
            if draft:
                image.draft(None, (1, 1))  # pyright: ignore[reportArgumentType] (None keeps the mode)
            return to_rgb(ImageOps.exif_transpose(image), name)
    except UnreadableImage:
        raise
    except Exception as error:
        if error_number(error) in OF_THE_MACHINE:  # no fault of the image, which must not be left out for it
            raise  # Pillow's decoders raise whatever broken bytes lead them to
        raise UnreadableImage(name, decode_failure(error)) from None


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert any Pillow mode to 8-bit RGB. 16-bit greys are scaled, 65535 to 255; Pillow itself would clip them."""
    if image.mode.startswith("I"):  # I;16, I;16B, and I: how Pillow holds 16-bit PNG (before 11) and PGM
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImage(name, "32-bit values; save as 8 or 16 bits")
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise UnreadableImage(name, "floating-point values have no fixed range; save as 8 or 16 bits")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB would warn about the palette's transparency
    return image.convert("RGB")


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return width and height as displayed, in pixels, from the header alone. Raises UnreadableImage."""
    try:
        with open_checked(path, str(path)) as image:
            # EXIF orientations 5 to 8 swap the sides; of a TIFF Pillow has done so (`exif_transpose` knows)
            turned = image.format != "TIFF" and image.getexif().get(0x0112, 1) >= 5
            return (image.height, image.width) if turned else image.size
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(str(path), decode_failure(error)) from None


def check_images(
    paths: Sequence[str],
    *,
    read: Callable[[str], Image.Image] = open_image,
    progress: Progress | None = None,
) -> list[UnreadableImage]:
    """Return the images among `paths` that cannot be read, in order.

    Images are decoded in threads (Pillow releases the lock). Above 20,000 only headers are read, and nothing is checked
    where the images are not files.
    """
    files = read is open_image
    many = len(paths) > CHECK_ALL
    if many and not files:
        return []
    check: Callable[[str], object] = image_size if many else check_file if files else read

    def failure(path: str) -> UnreadableImage | None:
        try:
            check(path)
        except UnreadableImage as error:
            return error
        return None

    unreadable = []
    with warnings.catch_warnings(), ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata, one for each file
        for done, error in enumerate(pool.map(failure, paths), start=1):
            if error:
                unreadable.append(error)
            if progress:
                progress(done, len(paths))
    return unreadable


def image_files(paths: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Return files as they are given, folders as the images below them in sorted order.

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
    return tuple(dict.fromkeys(found))


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
    return name.startswith(".") or name == "__MACOSX"


def open_checked(file: str | os.PathLike[str] | BinaryIO, name: str) -> Image.Image:
    if isinstance(file, (str, os.PathLike)) and os.path.isfile(file) and os.path.getsize(file) == 0:
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


def check_file(path: str) -> None:
    decode(path, path, draft=True)


def decode_failure(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or in a format that Pillow does not read"
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels; shrink it below 100 megapixels"
    return short_reason(error)


def _raise(error: OSError) -> None:
    raise error
