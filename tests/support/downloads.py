"""Trees of small files that stand for data sets as people download them, and the real ones where they are at hand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(os.environ.get("SNELLA_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
SIZE = (24, 20)

Files = Mapping[str, object]


def published(name: str) -> str:
    """Return a real data set's folder, in the layout in which it is published; skips where it is absent."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not in {SHARED}; SNELLA_SHARED_DATA names another place")
    return str(SHARED / name)


def lay(root: Path, files: Files) -> str:
    """Write files: None is a photograph, a tuple a grey mask of these values, a text its content."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            pixels = np.random.default_rng(sum(map(ord, name))).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path, "JPEG" if path.suffix in (".jfif", ".jpe") else None)
        elif isinstance(content, tuple):
            Image.fromarray(np.resize(np.array(content, dtype=np.uint8), (SIZE[1], SIZE[0]))).save(path)
        else:
            path.write_text(str(content), encoding="utf-8")
    return str(root)


def photos(*folders: str, count: int = 8, first: int = 0) -> dict[str, object]:
    """Return FOLDER/0.jpg and so on, in each folder."""
    return {f"{folder}/{i}.jpg": None for folder in folders for i in range(first, first + count)}
