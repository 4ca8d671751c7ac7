"""Small images with masks, and runs on them that take a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from snella.cli.main import main

COLORS = np.array([(20, 20, 20), (200, 40, 40), (40, 60, 210)], dtype=np.uint8)  # of classes 0, 1, 2
MODEL = ["--task", "segment", "--backbone", "test_vit", "--no-pretrained", "--image-size", "32", "--device", "cpu"]
TINY = [*MODEL, "--r", "4", "--epochs", "2", "--batch-size", "4", "--lr", "3e-3"]


def blobs(index: int, size: tuple[int, int] = (40, 36), classes: int = 3) -> np.ndarray:
    """A mask (h, w) of rectangles, other ones for each index."""
    random = np.random.default_rng(index)
    mask = np.zeros(size, dtype=np.uint8)
    for k in range(1, classes):
        top, left = (int(random.integers(0, side // 2)) for side in size)
        mask[top : top + size[0] // 2, left : left + size[1] // 3] = k
    return mask


def picture(mask: np.ndarray) -> Image.Image:
    """An image whose colours say the classes."""
    return Image.fromarray(COLORS[mask])


def write_pairs(root: Path, count: int = 12, *, images: str = "images", masks: str = "masks", classes: int = 3) -> Path:
    """root/images/0.png ... and root/masks/0.png ..., masks in grey."""
    for folder in (root / images, root / masks):
        folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        mask = blobs(i, classes=classes)
        picture(mask).save(root / images / f"{i}.png")
        Image.fromarray(mask).save(root / masks / f"{i}.png")
    return root


def train(data: Path | str, out: Path | str, *flags: str) -> int:
    """The exit code of a training of a second; later flags override earlier ones."""
    return main(["train", "--data", str(data), "--out", str(out), *TINY, *flags])
