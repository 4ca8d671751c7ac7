"""Small pictures of a run's images, as data URIs, up to a number that keeps a page small."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from snella.data.dataset import ImageData, name_in
from snella.data.images import UnreadableImage

SIDE = 96  # pixels of the longer side
SMALL = 48  # pixels below which an image is enlarged by a whole factor, so that single pixels show
QUALITY = 72
MOST = 400  # thumbnails of a page


class Thumbnails:
    """The thumbnails of a page: the first MOST that are asked for.

    Args:
        data: of the run; None: it cannot be read, and there are no thumbnails.
        split: the one that images are of.
    """

    def __init__(self, data: ImageData | None, split: str) -> None:
        self.made: list[str] = []
        self._places: dict[str, int | None] = {}
        self._paths: dict[str, str] = {}
        self._read: Callable[[str], Image.Image] | None = None
        if data is not None:
            images = data.splits[split]
            self._read = images.read
            self._paths = {name_in(data.root, path, data.folder): path for path in images.paths}

    def __bool__(self) -> bool:
        """Whether there are images to show."""
        return self._read is not None

    @property
    def is_full(self) -> bool:
        """Whether no more are made."""
        return len(self.made) >= MOST

    def of(self, name: str) -> int | None:
        """Return the place of an image's thumbnail; None: there is no room for it, or it cannot be read."""
        if name not in self._places and not self.is_full:
            self._places[name] = self._made(name)
        return self._places.get(name)

    def picture(self, name: str) -> Image.Image | None:
        """Return an image, 8-bit RGB; None: there is none, or it cannot be read."""
        if self._read is None or name not in self._paths:
            return None
        try:
            return self._read(self._paths[name])
        except UnreadableImage:
            return None

    def add(self, picture: Image.Image) -> int:
        """Take a picture as it is, whether there is room or not, and return its place."""
        self.made.append(as_uri(picture))
        return len(self.made) - 1

    def _made(self, name: str) -> int | None:
        picture = self.picture(name)
        return None if picture is None else self.add(small(picture))


def small(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """Return a picture whose longer side is `side` at most; tiny ones are enlarged by a whole factor."""
    picture = picture.convert("RGB")
    longest = max(picture.size)
    if longest < SMALL:
        factor = max(1, side // longest)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def beside(*pictures: Image.Image, side: int) -> Image.Image:
    """Return pictures side by side, each made as `small` makes it, on white."""
    parts = [small(picture, side) for picture in pictures]
    whole = Image.new("RGB", (sum(part.width for part in parts) + 4 * (len(parts) - 1), parts[0].height), "white")
    left = 0
    for part in parts:
        whole.paste(part, (left, 0))
        left += part.width + 4
    return whole


def as_uri(picture: Image.Image, quality: int = QUALITY) -> str:
    """Return a picture as a data URI, a JPEG."""
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(written.getvalue()).decode()


def figure_uri(path: Path, width: int = 1000) -> str | None:
    """Return a picture of the run folder as a data URI, no wider than `width`; None where there is none to read."""
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError):
        return None
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    return as_uri(picture, quality=85)
