"""Small data sets of images and masks, written for a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snella.data.readers.masked import read_masked_data
from snella.errors import UserError


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


def write_polyps(root: Path, ending: str, count: int = 10) -> np.ndarray:
    """Kvasir-SEG's layout: discs, saved as JPEG with its noise. Returns the disc."""
    y, x = np.mgrid[:40, :48]
    disc = (x - 20) ** 2 + (y - 22) ** 2 < 100
    for i in range(count):
        write_image(root / "images" / f"{i}.jpg", (48, 40))
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(disc.astype(np.uint8) * 255).convert("RGB").save(root / "masks" / f"{i}{ending}", quality=60)
    return disc


def refusal(data: str | Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        read_masked_data(str(data), seed=0, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text
