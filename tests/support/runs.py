"""Image folders and runs small enough to train in a second."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from snella.cli.main import main

MODEL = ["--backbone", "test_vit", "--no-pretrained", "--image-size", "32", "--r", "4", "--device", "cpu"]
TINY = [*MODEL, "--epochs", "2", "--batch-size", "8", "--lr", "3e-3"]


def write_images(root: Path, classes: int = 3, count: int = 10) -> Path:
    """Write noisy images whose channel tells the class, root/c0/0.png ..."""
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
    """Return the exit code of a training of a second; later flags override earlier ones."""
    return main(["train", "--data", str(data), "--out", str(out), *TINY, *flags])


def read(path: Path) -> Any:
    """Return the value of a JSON file."""
    return json.loads(path.read_text())


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    """Return the rows of one kind of a run's metrics.jsonl."""
    every = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in every if row["kind"] == kind]


def adapter(run: Path) -> dict[str, Tensor]:
    """Return the tensors of a run's adapter."""
    (file,) = (run / "adapter").glob("*.safetensors")
    return load_file(file)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Return whether tensors of the same names are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def stop_after_first_checkpoint(folder: Path, number: int) -> threading.Thread:
    """Send a signal to this process as soon as a checkpoint stands; return the thread that waits for it."""

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
