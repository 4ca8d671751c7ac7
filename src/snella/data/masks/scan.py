"""Look at every pair of image and mask before training: readable, of one size, and which values the mask holds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from snella.data.checks import CHECK_ALL, ImageFacts, look_at_file
from snella.data.images import Progress, UnreadableImage, image_size
from snella.data.masks.files import IGNORE, MAX_VALUE, MaskCode, check_sizes, mask_pixels, pack_colors, to_classes
from snella.data.threads import IN_FLIGHT, in_threads
from snella.errors import UserError

SCANNED = 5_000  # masks read where there are more than CHECK_ALL pairs
MAX_COLORS = 4_096  # a file with more is a photograph


@dataclass(frozen=True)
class MaskFacts:
    """The different values (1, k) uint16, or colours (1, k, 3) uint8, of a mask, and the pixels of each (1, k)."""

    path: str
    jpeg: bool
    values: np.ndarray
    counts: np.ndarray

    @property
    def colored(self) -> bool:
        return self.values.ndim == 3

    def pixels(self, code: MaskCode) -> np.ndarray:
        """Count the pixels of each class, (K,). Raises UserError where a value stands for no class."""
        try:
            classes = to_classes(self.values, code, self.path, jpeg=self.jpeg, counts=self.counts).numpy()
        except UnreadableImage as error:
            raise UserError(f"{error}; mend the mask, name the value in a classes.json or set --ignore-index") from None
        used = classes != IGNORE
        return np.bincount(classes[used], self.counts[used], minlength=len(code.values)).astype(np.int64)


def mask_facts(path: str) -> tuple[MaskFacts, tuple[int, int]]:
    """Read a mask: its facts and its (width, height). Raises UnreadableImage."""
    pixels, jpeg = mask_pixels(path)
    size = pixels.shape[1], pixels.shape[0]
    if pixels.ndim == 2:
        counts = _count(pixels)
        values = np.flatnonzero(counts)
        return MaskFacts(path, jpeg, values.astype(np.uint16)[None], counts[None, values]), size
    keys, counts = np.unique(pack_colors(pixels), return_counts=True)
    if len(keys) > MAX_COLORS:
        raise UnreadableImage(path, f"{len(keys)} colours; a mask has one for each class")
    colors = np.stack([keys >> 16, keys >> 8 & 255, keys & 255], axis=1).astype(np.uint8)
    return MaskFacts(path, jpeg, colors[None], counts[None]), size


def _count(values: np.ndarray) -> np.ndarray:
    """Count each of the values (h, w) uint16, (65536,); bincount itself would make 8 bytes of each."""
    rows = max(1, 1_000_000 // max(1, values.shape[1]))
    bands = (values[top : top + rows].ravel() for top in range(0, len(values), rows))
    return sum((np.bincount(band, minlength=MAX_VALUE + 1) for band in bands), np.zeros(MAX_VALUE + 1, np.int64))


def scan_pairs(
    pairs: Sequence[tuple[str, str]], progress: Progress | None = None
) -> tuple[list[MaskFacts | UnreadableImage | None], bool, dict[str, ImageFacts]]:
    """Return the mask's facts for each (image, mask), why the pair cannot be used, or None where only the mask's header
    was read; whether every mask was read; and the facts of the images that were read, by path.

    Up to CHECK_ALL pairs every file is read, in threads; beyond that headers, and 5,000 evenly chosen masks.
    """
    whole = len(pairs) <= CHECK_ALL
    chosen = set(range(len(pairs)) if whole else np.linspace(0, len(pairs) - 1, SCANNED).astype(int).tolist())

    facts: dict[str, ImageFacts] = {}

    def look(index: int) -> MaskFacts | UnreadableImage | None:
        image, mask = pairs[index]
        try:
            seen = look_at_file(image) if index in chosen else None
            size = image_size(mask)
            with IN_FLIGHT.holding(size[0] * size[1]):
                found = mask_facts(mask)[0] if index in chosen else None
            check_sizes(image, image_size(image), size)
        except UnreadableImage as error:
            return error
        if seen is not None:
            facts[image] = seen
        return found

    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata, one for each file
        for result in in_threads(look, range(len(pairs))):
            results.append(result)
            if progress:
                progress(len(results), len(pairs))
    return results, whole, facts
