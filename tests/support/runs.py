"""Image folders and runs small enough to train in a second."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from snella.cli.main import main

MODEL = ["--backbone", "test_vit", "--no-pretrained", "--image-size", "32", "--r", "4", "--device", "cpu"]
TINY = [*MODEL, "--epochs", "2", "--batch-size", "8", "--lr", "3e-3"]


def write_images(root: Path, classes: int = 3, count: int = 10) -> Path:
    """Noisy images whose channel tells the class: root/c0/0.png ..."""
    random = np.random.default_rng(0)
    for label in range(classes):
        folder = root / f"c{label}"
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 90, (40, 36, 3))
            pixels[..., label] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


def train(data: Path | str, out: Path | str, *flags: str) -> int:
    """The exit code of a training of a second; later flags override earlier ones."""
    return main(["train", "--data", str(data), "--out", str(out), *TINY, *flags])


def stop_after_first_checkpoint(folder: Path, number: int) -> threading.Thread:
    """Sends a signal to this process as soon as a checkpoint stands."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if list((folder / "checkpoints").glob("step-*")):
                os.kill(os.getpid(), number)
                return
            time.sleep(0.005)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread
