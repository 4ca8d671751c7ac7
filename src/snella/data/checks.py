"""The look at every image before training: whether it can be read, and what is odd about it.

file ─ decoded once, in threads ─┬─ UnreadableImage
                                 └─ ImageFacts ─ the range of 16-bit values, and what `readers.suspicions` makes of them
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from snella.data.images import (
    WHITE,
    ImageFiles,
    ImageReader,
    Progress,
    UnreadableImage,
    decoding,
    image_size,
    is_transparent,
    is_wide,
    to_rgb,
    upright,
    wide_values,
)
from snella.data.threads import IN_FLIGHT, in_threads

CHECK_ALL = 10_000  # more images than this: only their headers are read before training
SAMPLED = 2_000  # of these all the same
DEPTHS = (1, 8, 10, 12, 14, 16)  # bits that a device or a program gives the values of a file
LEAST = 32  # pixels of a side that are enough to see what an image shows
LEAST_COVER = 0.001  # share of an image that has to be seen
FLAT = 2  # of 255: the least contrast of an image that shows anything

Looked = TypeVar("Looked")


@dataclass(frozen=True)
class ImageFacts:
    """What a look at an image found.

    Args:
        fingerprint: 64 bits, whether each of 8 x 8 places is darker than the one to its right (dHash); equal, or
            nearly so, for copies of one picture whatever their size and format. None where it shows nothing.
        thumbnail: 16 x 16 greys.
        brightest: the largest value of 8 bits.
        widest: the largest value of 16-bit greys; None for other images.
        empty: it shows nothing: one colour, or transparent all over.
    """

    fingerprint: int | None
    thumbnail: bytes
    brightest: int
    widest: int | None = None
    empty: bool = False


@dataclass(frozen=True)
class Checked:
    """The images that cannot be read, in order, and what is known of the others, by path."""

    unreadable: list[UnreadableImage] = field(default_factory=list)
    facts: dict[str, ImageFacts] = field(default_factory=dict)


def check_images(paths: Sequence[str], *, read: Callable[[str], Image.Image], progress: Progress | None) -> Checked:
    """Read the images, each once, in threads (Pillow releases the lock).

    Above 10,000 the headers alone are read, but for 2,000 images evenly chosen; of images that are not files, those
    alone, and none of a package's.
    """
    files = isinstance(read, ImageFiles)
    if len(paths) > CHECK_ALL and not isinstance(read, ImageReader):
        return Checked()
    whole = set(paths if len(paths) <= CHECK_ALL else paths[:: len(paths) // SAMPLED])

    def look(path: str) -> object:
        if path not in whole:
            return image_size(path) if files else None
        if files:
            return look_at_file(path)
        return _look_at(read.decoded(path), path) if isinstance(read, ImageReader) else facts_of(read(path))

    checked = Checked()
    for path, found in zip(paths, looks(look, paths, progress), strict=True):
        if isinstance(found, UnreadableImage):
            checked.unreadable.append(found)
        elif isinstance(found, ImageFacts):
            checked.facts[path] = found
    return checked


def looks(
    look: Callable[[str], Looked], paths: Sequence[str], progress: Progress | None
) -> Iterable[Looked | UnreadableImage]:
    """Yield what `look` returns for each path, in order, or why the image cannot be read."""

    def guarded(path: str) -> Looked | UnreadableImage:
        try:
            return look(path)
        except UnreadableImage as error:
            return error

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata, one for each file
        for done, found in enumerate(in_threads(guarded, paths), start=1):
            yield found
            if progress:
                progress(done, len(paths))


def look_at_file(path: str) -> ImageFacts:
    """Read all of a file, a JPEG at up to 1/8 of its size, which takes a third of the time. Raises UnreadableImage."""
    with decoding(path, path) as image, IN_FLIGHT.holding(image.width * image.height):
        image.draft(None, (LEAST, LEAST))  # pyright: ignore[reportArgumentType] (None keeps the mode)
        return _look_at(upright(image, path), path)


def _look_at(image: Image.Image, name: str) -> ImageFacts:
    """Return the facts of an image in its own mode, whatever is white. Raises UnreadableImage."""
    widest = int(wide_values(image, name).max(initial=0)) if is_wide(image) else None
    clear = is_transparent(image) and _cover(image) < LEAST_COVER
    return facts_of(to_rgb(image, name), widest=widest, clear=clear)


def _cover(image: Image.Image) -> float:
    """Return the share of an image that is not transparent."""
    return float(np.asarray(image.convert("RGBA").getchannel("A")).mean()) / 255


def facts_of(image: Image.Image, *, widest: int | None = None, clear: bool = False) -> ImageFacts:
    """Return the facts of a decoded image, 8-bit RGB."""
    extremes: Any = image.getextrema()  # of each of the three channels
    empty = clear or max(high - low for low, high in extremes) <= FLAT
    greys = image.convert("L")
    grey = np.asarray(greys.resize((9, 8), Image.Resampling.BOX)).astype(np.int16)  # (8, 9)
    thumbnail = greys.resize((16, 16), Image.Resampling.BOX).tobytes()
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    fingerprint = None if empty else int.from_bytes(bits.tobytes(), "big")
    return ImageFacts(fingerprint, thumbnail, max(high for _, high in extremes), widest, empty)


def widest_values(paths: Sequence[str]) -> dict[str, int]:
    """Return the largest value of each file of 16-bit greys among `paths`; of other files the header alone is read."""

    def look(path: str) -> int | None:
        with decoding(path, path) as image, IN_FLIGHT.holding(image.width * image.height):
            return int(wide_values(upright(image, path), path).max(initial=0)) if is_wide(image) else None

    found = zip(paths, looks(look, paths, None), strict=True)
    return {path: widest for path, widest in found if isinstance(widest, int)}


def white_of(widest: Iterable[int]) -> int:
    """Return the value of 16-bit greys that is white: the largest of the fewest usual bits that hold all values.

    Devices of 12 bits write files of 16; over the whole range their images would be nearly black.
    """
    largest = max(widest, default=WHITE)
    return next(2**bits - 1 for bits in DEPTHS if largest < 2**bits)
