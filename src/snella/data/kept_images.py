"""Decoded images kept in memory, for the processes that load batches to share: every file is decoded once a run."""

from __future__ import annotations

import mmap
import multiprocessing
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
from PIL import Image

from snella.data.dataset import Pictures
from snella.data.images import ImageFiles, UnreadableImage, image_size
from snella.data.threads import in_threads
from snella.errors import UserError

CHANNELS = 3


class KeptImages:
    """Reads image files as another reader does; each file once, whichever process of those that were forked asks.

    The memory is taken page by page, as images come.

    Args:
        read: the reader, which gives 8-bit RGB.
        sizes: width and height of each file; one that turns out to have another is read every time.
    """

    def __init__(self, read: ImageFiles, sizes: Mapping[str, tuple[int, int]]) -> None:
        self._read, self._sizes = read, sizes
        lengths = [width * height * CHANNELS for width, height in sizes.values()]
        starts = np.cumsum([len(sizes), *lengths])  # the first bytes say of each image whether it is there
        self._places = {path: (i, int(starts[i])) for i, path in enumerate(sizes)}
        self._memory = mmap.mmap(-1, max(1, int(starts[-1])))

    def __call__(self, path: str) -> Image.Image:
        """Return the image, which may not be written to. Raises UnreadableImage."""
        if path not in self._places:
            return self._read(path)
        i, start = self._places[path]
        size = self._sizes[path]
        stop = start + size[0] * size[1] * CHANNELS
        if self._memory[i]:
            pixels = np.frombuffer(self._memory, np.uint8, stop - start, start)
            return Image.fromarray(pixels.reshape(size[1], size[0], CHANNELS))
        image = self._read(path)
        if image.size == size and image.mode == "RGB":
            self._memory[start:stop] = image.tobytes()
            self._memory[i] = 1  # last: whoever sees it finds the pixels there
        return image


def keep_images(splits: Mapping[str, Any], *, workers: int, limit: int, must: bool = False) -> dict[str, Any]:
    """Return the splits with readers that keep what they have read, where that can be and fits.

    Args:
        splits: examples by split; those that are not image files stay as they are.
        workers: processes that load; they share the memory where they are forked, and could not where they are not.
        limit: bytes that all images may take.
        must: raise where it cannot be or does not fit.

    Raises:
        UserError: as `must` says.
    """
    if workers and multiprocessing.get_start_method() != "fork":
        if must:
            raise UserError("--cache-images on: worker processes cannot share memory here; pass --workers 0 with it")
        return dict(splits)
    kept, needed = dict(splits), 0
    for name, part in splits.items():
        if not isinstance(getattr(part, "read", None), ImageFiles):
            continue
        sizes = _sizes(part)
        needed += CHANNELS * sum(width * height for width, height in sizes.values())
        if needed > limit:
            if must:
                free = f"{limit / 1e9:,.1f} GB that are free"
                raise UserError(f"--cache-images on: the images take more than the {free}; leave it out")
            return dict(splits)
        kept[name] = replace(part, read=KeptImages(part.read, sizes))
    return kept


def _sizes(images: Pictures) -> dict[str, tuple[int, int]]:
    """Return width and height of each file, of which the header is read; without those that cannot be read."""

    enough = cast(ImageFiles, images.read).enough

    def size(path: str) -> tuple[int, int] | None:
        try:
            return image_size(path, enough)
        except UnreadableImage:
            return None

    paths = tuple(dict.fromkeys(images.paths))
    return {path: found for path, found in zip(paths, in_threads(size, paths), strict=True) if found}
