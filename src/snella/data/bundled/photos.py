"""The bundled sets for generation: crops of 32 x 32 pixels of photographs that scikit-image and scikit-learn ship.

`photos` has six kinds to pre-train on, `photos-new` three others to adapt to. The packages are read as files, never
imported. Train, val and test are crops of three strips of each photograph, side by side, that do not overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from snella.data.bundled.packages import package_file
from snella.data.images import open_image
from snella.data.listing import Listing
from snella.errors import UserError

SIZE = 32  # pixels, of a crop
SHORT_SIDE = 192  # pixels, of a photograph before it is cut
STRIPS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}  # shares of the longer side
INSTALL = "pip install scikit-image scikit-learn"

_SKIMAGE, _SKLEARN = ("skimage", "data"), ("sklearn", "datasets", "images")


@dataclass(frozen=True)
class Photo:
    """One photograph: the kind of its crops, where it lies, and its terms."""

    kind: str
    place: tuple[str, ...]  # package and folders in it
    file: str
    terms: str


SETS: dict[str, tuple[Photo, ...]] = {
    "photos": (
        Photo("brick", _SKIMAGE, "brick.png", "CC0"),
        Photo("coffee", _SKIMAGE, "coffee.png", "CC0, Rachel Michetti"),
        Photo("gravel", _SKIMAGE, "gravel.png", "CC0"),
        Photo("retina", _SKIMAGE, "retina.jpg", "CC0"),
        Photo("stars", _SKIMAGE, "hubble_deep_field.jpg", "public domain, NASA"),
        Photo("temple", _SKLEARN, "china.jpg", "CC BY 2.0, danielbuechele"),
    ),
    "photos-new": (
        Photo("cat", _SKIMAGE, "chelsea.png", "CC0, Stefan van der Walt"),
        Photo("grass", _SKIMAGE, "grass.png", "CC0"),
        Photo("tissue", _SKIMAGE, "ihc.png", "no known copyright restrictions"),
    ),
}
COUNTS = {"photos": {"train": 256, "val": 16, "test": 16}, "photos-new": {"train": 128, "val": 32, "test": 64}}


@dataclass(frozen=True)
class Crops:
    """Crops by name ("tissue-064-120": kind, top, left)."""

    name: str

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(photo.kind for photo in SETS[self.name])

    @property
    def notes(self) -> tuple[str, ...]:
        terms = "; ".join(f"{photo.kind} {photo.terms}" for photo in SETS[self.name])
        return (
            f"source: photographs of scikit-image and scikit-learn ({terms})",
            f"{SIZE} x {SIZE} crops, splits are strips of each photograph that do not overlap: "
            "fit to compare methods, not to judge what they make of other photographs",
        )

    def names(self, split: str) -> list[tuple[str, int]]:
        """Return the crops of a split with their labels, the same on every machine."""
        low, high = STRIPS[split]
        found = []
        for label, photo in enumerate(SETS[self.name]):
            height, width = _photo(self.name, photo.kind).shape[:2]
            tops = [0, height] if width >= height else [round(low * height), round(high * height)]
            lefts = [round(low * width), round(high * width)] if width >= height else [0, width]
            rows, columns = tops[1] - SIZE + 1 - tops[0], lefts[1] - SIZE + 1 - lefts[0]
            random = np.random.default_rng([label, tuple(STRIPS).index(split)])
            chosen = random.choice(rows * columns, min(COUNTS[self.name][split], rows * columns), replace=False)
            for place in sorted(chosen.tolist()):
                top, left = tops[0] + place // columns, lefts[0] + place % columns
                found.append((f"{photo.kind}-{top:03d}-{left:03d}", label))
        return found

    def read(self, name: str) -> Image.Image:
        """Return the crop, RGB."""
        kind, top, left = name.rsplit("-", 2)
        y, x = int(top), int(left)
        return Image.fromarray(_photo(self.name, kind)[y : y + SIZE, x : x + SIZE])


def crops(name: str) -> Crops:
    """Return the crops of a bundled set.

    Raises:
        UserError: a package or a file of it is missing.
    """
    for photo in SETS[name]:
        _file(name, photo)
    return Crops(name)


def photos(name: str, *, seed: int) -> tuple[Listing, dict[str, str]]:
    """List a bundled set by its name; it has classes and no captions.

    Args:
        seed: draws nothing here; every bundled set is listed alike.

    Raises:
        UserError: a package or a file of it is missing.
    """
    images = crops(name)
    splits = {split: images.names(split) for split in STRIPS}
    return Listing(name, "", images.classes, splits, images.read, images.notes), {}


@cache
def _photo(name: str, kind: str) -> np.ndarray:
    photo = next(photo for photo in SETS[name] if photo.kind == kind)
    image = open_image(_file(name, photo))
    scale = SHORT_SIDE / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def _file(name: str, photo: Photo) -> str:
    path = package_file(*photo.place, photo.file)
    if path is None:
        raise UserError(
            f"data {name!r} needs {photo.file} of the package {photo.place[0]}; install them with: {INSTALL}"
        )
    return path
