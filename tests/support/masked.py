"""Small data sets of images and masks, written for a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path | str, size: tuple[int, int] = (12, 10)) -> str:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (sum(map(ord, path.stem)) % 256, 90, 40)).save(path)
    return str(path)


def write_mask(path: Path | str, values: Sequence[int], size: tuple[int, int] = (12, 10), dtype: str = "uint8") -> str:
    """A grey mask: the values by turns, pixel by pixel."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    Image.fromarray(np.resize(np.array(values, dtype=dtype), (height, width))).save(path)
    return str(path)


def write_pairs(
    root: Path,
    count: int,
    values: Sequence[int] = (0, 1, 2),
    *,
    images: str = "images",
    masks: str = "masks",
    suffix: str = "",
    first: int = 0,
) -> str:
    """root/images/0.png and root/masks/0SUFFIX.png, and so on; returns the root."""
    for i in range(first, first + count):
        write_image(root / images / f"{i}.png")
        write_mask(root / masks / f"{i}{suffix}.png", values)
    return str(root)
