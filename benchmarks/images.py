"""How fast images become batches, and how long a run over many takes to its first step.

    python -m benchmarks.images                       photographs of 500 x 375 pixels, batches at 224
    python -m benchmarks.images --size 2000x1500 --workers 0,4

Images are JPEG files of noise that looks like a photograph to the decoder, in a folder that is deleted afterwards.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from snella.data.dataset import Images
from snella.data.images import ImageFiles
from snella.data.kept_images import keep_images
from snella.data.loading import ImageBatches
from snella.data.readers.labelled import read_data
from snella.data.transforms.images import Augmentation, Preprocessing, train_transform
from snella.machine import free_memory

EPOCHS = 3  # the first one starts the workers and fills the memory; the others are timed
CLASSES = 10
AUGMENTATION = Augmentation("crop")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description="how fast images become batches")
    parser.add_argument("--size", default="500x375", help="width x height of the files")
    parser.add_argument("--count", type=int, default=512, help="files of which batches are made")
    parser.add_argument("--many", type=int, default=20_000, help="files whose reading is timed; 0: none")
    parser.add_argument("--workers", default="0,2,4")
    parser.add_argument("--image-size", type=int, default=224)
    args = parser.parse_args(arguments)
    width, height = map(int, args.size.split("x"))
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), (width, height), max(args.count, args.many))
        if args.many:
            start = time.perf_counter()
            data = read_data(folder, seed=0)
            seconds = time.perf_counter() - start
            images = sum(map(len, data.splits.values()))
            console.print(f"{images:,} images listed, checked and split in {seconds:.1f} s")
        paths = tuple(map(str, sorted(Path(folder).glob("*/*.jpg"))[: args.count]))
        images = Images(paths, (0,) * len(paths))
        smaller = replace(images, read=ImageFiles(enough=AUGMENTATION.enough(args.image_size)))
        columns = ("workers", "images/s", "decode reduced", "decoded ones kept", "decode reduced, kept")
        table = Table(*columns, title="batches of 32, augment crop")
        for workers in map(int, args.workers.split(",")):
            parts: list[Images] = []
            for part in (images, smaller):
                parts += (part, keep_images({"train": part}, workers=workers, limit=free_memory())["train"])
            rates = [rate(parts[i], workers, args.image_size) for i in (0, 2, 1, 3)]
            table.add_row(str(workers), *(f"{value:.0f}" for value in rates))
        console.print(table)


def write_images(folder: Path, size: tuple[int, int], count: int) -> None:
    """Write as many JPEG files, of eight different pictures, in folders of classes."""
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(8):
        coarse = random.integers(0, 255, (size[1] // 8, size[0] // 8, 3)).astype(np.uint8)
        content = io.BytesIO()
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
        pictures.append(content.getvalue())
    for label in range(CLASSES):
        (folder / f"c{label}").mkdir()
    for i in range(count):
        (folder / f"c{i % CLASSES}" / f"{i:06d}.jpg").write_bytes(pictures[i % 8])


def rate(images: Images, workers: int, size: int) -> float:
    """Return images a second over all epochs but the first."""
    transform = train_transform(Preprocessing(size), AUGMENTATION)
    batches = ImageBatches(images, transform, batch_size=32, shuffle=True, seed=0, workers=workers)
    start = 0.0
    for epoch in range(EPOCHS):
        if epoch == 1:
            start = time.perf_counter()
        for _ in batches.epoch(epoch):
            pass
    return len(images) * (EPOCHS - 1) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
