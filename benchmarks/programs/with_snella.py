"""This program at its defaults, but for the epochs, which fill the time.

python with_snella.py BED SECONDS SEED [FLAG ...]     prints a line of JSON
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import torch

import snella
from benchmarks.programs.filling import filled
from snella.cli.main import main as command


def trained(bed: Path, about: dict, seed: int, epochs: int, flags: list[str]) -> dict:
    """Return the summary of a run."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        given = ["--data", str(bed), "--backbone", about["backbone"], "--image-size", str(about["image_size"])]
        given += ["--seed", str(seed), "--epochs", str(epochs), "--out", f"{folder}/run"]
        given += ["--augment", about["augment"], "--trust", "copies", "lookalikes", "--device", "cpu"]
        assert command(["train", *given, *flags]) == 0
        return json.loads(Path(folder, "run", "summary.json").read_text())


def main(bed: Path, seconds: float, seed: int, flags: list[str]) -> None:
    about = json.loads((bed / "bed.json").read_text())
    summary, epochs, took = filled(lambda count: trained(bed, about, seed, count, flags), seconds)
    versions = {"snella": snella.__version__, "torch": torch.__version__}
    found = {"top1": summary["test"]["top1"], "epochs": epochs, "seconds": took}
    print(json.dumps({**found, "versions": versions}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
