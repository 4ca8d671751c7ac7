"""How fast a finished run predicts, beside a plain loop over the same backbone of timm.

    python -m benchmarks.predict                                 ViT-S at 224 pixels, 128 JPEG files of 500 x 375
    python -m benchmarks.predict --backbone convnext_tiny --batch-size 16

The plain loop opens each file by Pillow, takes timm's own transform, and gives batches to the model. Both read the
files anew in each round. Weights are random, the files lie in a folder that is deleted afterwards.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from PIL import Image
from rich.console import Console
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import nn

from benchmarks.images import CLASSES, write_images
from benchmarks.timing import interleaved, paired_ratio
from snella.cli.main import main as snella
from snella.data.dataset import Images
from snella.errors import UserError
from snella.runs.load import LoadedRun, load_run


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print images a second of both, and the ratio of their times."""
    parser = argparse.ArgumentParser(description="how fast a run predicts, beside a plain loop")
    parser.add_argument("--backbone", default="vit_small_patch16_224", help="timm's name of a model")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--size", default="500x375", help="width x height of the files")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(arguments)
    width, height = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data", Path(folder) / "run"
        data.mkdir()
        write_images(data, (width, height), args.images)
        flags = ["--backbone", args.backbone, "--no-pretrained", "--trust", "copies", "lookalikes"]
        few = ["--epochs", "1", "--val-fraction", "0.4", "--test-fraction", "0.4", "--test", "none"]
        if snella(["train", "--data", str(data), "--out", str(out), *flags, *few]):
            raise UserError(f"{args.backbone} cannot be trained here")
        run = load_run(out)
        plain = timm.create_model(args.backbone, num_classes=CLASSES).eval()
        paths = tuple(map(str, sorted(data.glob("*/*.jpg"))))
        runs = {
            "snella predict": lambda: predict_by_run(run, paths, args.batch_size),
            "plain loop": lambda: predict_plainly(plain, paths, args.batch_size),
        }
        times = interleaved(runs, warmup=1, rounds=args.rounds)
    console = Console()
    for name, seconds in times.items():
        console.print(f"{name}: {len(paths) / median(seconds):.1f} images/s")
    ratio = paired_ratio(times["snella predict"], times["plain loop"])
    console.print(f"time of snella predict / plain loop: {ratio:.2f}")


def predict_by_run(run: LoadedRun, paths: Sequence[str], batch_size: int) -> float:
    """Return the seconds that a run takes to predict the images."""
    start = time.perf_counter()
    transform = run.task.eval_transform(run.preprocessing)
    found = list(run.learner.predict(run.model, Images(tuple(paths)), transform, batch_size=batch_size))
    assert len(found) == len(paths)
    return time.perf_counter() - start


@torch.no_grad()
def predict_plainly(model: nn.Module, paths: Sequence[str], batch_size: int) -> float:
    """Return the seconds that a plain loop takes for the same."""
    start = time.perf_counter()
    transform: Any = create_transform(**resolve_model_data_config(model), is_training=False)
    found = []
    for first in range(0, len(paths), batch_size):
        images = [transform(Image.open(path).convert("RGB")) for path in paths[first : first + batch_size]]
        found.extend(model(torch.stack(images)).softmax(1).tolist())
    assert len(found) == len(paths)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
