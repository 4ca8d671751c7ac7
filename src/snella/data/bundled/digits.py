"""The bundled data set `digits`: handwritten digits of 8 x 8 pixels, from a file of the package scikit-learn.

1,797 digits by 13 writers, the test set of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI
Machine Learning Repository), enlarged to 64 x 64 pixels. The package is read as a file, never imported.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from snella.data.bundled.packages import package_file
from snella.data.listing import Listing
from snella.data.splits import split_counts
from snella.errors import UserError

NAME = "digits"
INSTALL = "pip install scikit-learn"
CLASSES = tuple("0123456789")
SMALL, SIZE = 8, 64  # pixels a side, in the file and as given
LEVELS = 16  # the largest value: how many of 4 x 4 scanned pixels are ink
TRAIN, VAL = 200, 100  # images; the rest is test
NOTES = (
    "source: scikit-learn's digits.csv.gz, the test set of UCI's Optical Recognition of Handwritten Digits",
    "licence: CC BY 4.0 (Alpaydin and Kaynak 1998), shipped under scikit-learn's BSD licence",
    f"{SMALL} x {SMALL} pixels, white on black, enlarged to {SIZE} x {SIZE} (bicubic)",
    "the file does not tell its 13 writers apart, so each may be in every split",
)


@dataclass(frozen=True)
class Digits:
    """Digits by name ("digit-0042": the row of the file, from 0). The file is read once a process."""

    file: str

    def read(self, name: str) -> Image.Image:
        """Return the digit, RGB of three equal channels, 64 x 64 pixels."""
        row = _table(self.file)[int(name.removeprefix("digit-")), :-1].reshape(SMALL, SMALL)
        grey = (row.astype(np.float32) * (255 / LEVELS)).round().astype(np.uint8)
        return Image.fromarray(grey).resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB")


def digits(name: str = NAME, *, seed: int) -> Listing:
    """List the ten classes, stratified: 200 train, 100 val, the rest test.

    Raises:
        UserError: the package is missing or its file is another one.
    """
    file = package_file("sklearn", "datasets", "data", "digits.csv.gz")
    if file is None:
        raise UserError(f"data {name!r} needs digits.csv.gz of the package scikit-learn; install it with: {INSTALL}")
    labels = _table(file)[:, -1].tolist()
    names = [f"digit-{i:04d}" for i in range(len(labels))]
    parts = split_counts(names, labels, {"train": TRAIN, "val": VAL}, seed=seed)
    parts["test"] = parts.pop("rest")
    splits = {part: [(names[i], labels[i]) for i in indices] for part, indices in parts.items()}
    made = f"{TRAIN} train, {VAL} val, the rest test, stratified by class, seed {seed}"
    return Listing(NAME, "", CLASSES, splits, read=Digits(file).read, notes=(*NOTES, made))


@lru_cache(maxsize=1)
def _table(file: str) -> np.ndarray:
    """Read rows of 64 values 0 to 16 and the digit, (1797, 65) uint8."""
    try:
        with gzip.open(file, "rt", encoding="ascii") as lines:
            table = np.loadtxt(lines, delimiter=",")
        highest = [LEVELS] * SMALL**2 + [len(CLASSES) - 1]
        if table.shape != (1797, len(highest)) or table.min() < 0 or (table > highest).any():
            raise ValueError("other rows or values than scikit-learn's")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{file} cannot be read ({error}); install it anew with: {INSTALL}") from error
    return table.astype(np.uint8)
