"""Small images with captions or classes, and runs of a second that learn to generate them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from snella.cli.main import main
from support.runs import read

SIZE = 16  # pixels; what the tiny pipelines make
CLASSES = ("cat", "dog")
PROMPT = "a photo of sks"
CAPTIONS = ("a red cat", "a blue dog", "a photo of a cat", "a photo of a dog") * 3
SAMPLES = ["--samples", "1", "--sample-steps", "2", "--sample-every", "0"]
MODEL = ["--task", "generate", "--image-size", str(SIZE), "--r", "4", "--device", "cpu"]
SPLIT = ["--val-fraction", "0.15", "--test-fraction", "0.15"]  # else all images are trained on
TINY = [*MODEL, *SAMPLES, *SPLIT, "--epochs", "1", "--batch-size", "4", "--lr", "3e-3"]


def picture(index: int, size: int = SIZE) -> Image.Image:
    """Return a rectangle on a plain ground, other ones for each index."""
    random = np.random.default_rng(index)
    pixels = np.empty((size, size, 3), np.uint8)
    pixels[:] = random.integers(0, 256, 3)
    top, left = random.integers(0, size // 2, 2)
    pixels[top : top + size // 2, left : left + size // 3] = random.integers(0, 256, 3)
    return Image.fromarray(pixels)


def write_flat(root: Path, count: int = 12, *, size: int = SIZE) -> Path:
    """Write root/0.png ..."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(i, size).save(root / f"{i}.png")
    return root


def write_texts(root: Path, captions: Sequence[str], *, size: int = SIZE) -> Path:
    """Write root/0.png, root/0.txt ..."""
    write_flat(root, len(captions), size=size)
    for i, caption in enumerate(captions):
        (root / f"{i}.txt").write_text(caption)
    return root


def write_metadata(root: Path, captions: Sequence[str]) -> Path:
    """Write root/0.png ... and root/metadata.jsonl."""
    write_flat(root, len(captions))
    rows = [json.dumps({"file_name": f"{i}.png", "text": caption}) for i, caption in enumerate(captions)]
    (root / "metadata.jsonl").write_text("\n".join(rows))
    return root


def write_class_folders(root: Path, count: int = 6, classes: Sequence[str] = CLASSES) -> Path:
    """Write root/cat/0.png ..., root/dog/6.png ..."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(label * count, (label + 1) * count):
            picture(i).save(root / name / f"{i}.png")
    return root


def train(data: Path | str, backbone: Path | str, out: Path | str, *flags: str) -> int:
    """Return the exit code of a training of a second; later flags override earlier ones."""
    return main(["train", "--data", str(data), "--backbone", str(backbone), "--out", str(out), *TINY, *flags])


def pixels(path: Path | str) -> np.ndarray:
    """Return the (h, w, 3) pixels of an image file, as integers that may be subtracted."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def predicted(run: Path, folder: Path, *flags: str) -> list[Path]:
    """Return the images that `predict` writes to a new folder, in order."""
    assert main(["predict", str(run), "--pictures", str(folder), "--device", "cpu", *flags]) == 0
    return sorted(folder.iterdir())


def evaluated(run: Path) -> float:
    """Return the denoising loss of the test split as `evaluate` finds it."""
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    return read(run / "evaluation" / "test.json")["metrics"]["denoising_loss"]
