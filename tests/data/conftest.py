from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Maker = Callable[..., str]


@pytest.fixture
def picture() -> Maker:
    """Write a random RGB image, its folders too; returns its path."""

    def make(path: Path | str, size: tuple[int, int] = (12, 10)) -> str:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = sum(map(ord, path.name))
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return str(path)

    return make


@pytest.fixture
def class_folders(picture: Maker) -> Maker:
    """Write root/CLASS/0.png, 1.png, ... for each class=count; returns the root."""

    def make(root: Path | str, **counts: int) -> str:
        for name, count in counts.items():
            for i in range(count):
                picture(Path(root) / name / f"{i}.png")
        return str(root)

    return make
