"""Compare methods of tuning on the same images, and read the results in Python.

    python examples/compare_methods.py --out runs/compare-example
    python examples/compare_methods.py --data flowers/ --backbone vit_small_patch16_224.augreg_in21k --epochs 10

Without `--data` the images are made up (the colour is the class) and the model is tiny and untrained, which takes half
a minute on a CPU. `snella compare --help` lists all settings; compare.md and compare.png in the folder are for reading.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

TINY = ["--backbone", "test_vit", "--no-pretrained", "--image-size", "32", "--r", "4", "--epochs", "2"]


def write_images(folder: Path) -> Path:
    """Write a folder of images for each of two classes, and return the folder."""
    random = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(20):
            pixels = random.integers(0, 100, (32, 32, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="a folder of class folders, or another layout (made-up images)")
    parser.add_argument("--methods", default="snella,linear", help="methods, with commas (snella,linear)")
    parser.add_argument("--out", type=Path, default=Path("runs/compare-example"), help="folder (runs/compare-example)")
    args, flags = parser.parse_known_args()  # flags of `snella train` go through: --epochs, --batch-size ...
    if args.data is None:
        args.data = str(write_images(args.out / "images"))
        flags = [*TINY, "--seeds", "0", "--lr-grid", "3e-3", "--workers", "2", *flags]
    command = [sys.executable, "-m", "snella", "compare", "--data", args.data, "--methods", args.methods, *flags]
    subprocess.run([*command, "--out", str(args.out / "runs")], check=True)

    result = json.loads((args.out / "runs" / "compare.json").read_text(encoding="utf-8"))
    for row in result["methods"]:
        test, parameters = row["summary"]["test_mean"], row["summary"]["trainable_parameters"]
        print(f"{row['method']}: test {result['metric']} {test:.3f} at lr {row['lr']:g}, {parameters:,} parameters")


if __name__ == "__main__":
    main()
