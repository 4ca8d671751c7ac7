"""Make small files of data and weights for a machine without network and without their packages.

    python -m benchmarks.gpu.pack data elpv-mono --size 112 --out runs/gpu/elpv-mono.npz
    python -m benchmarks.gpu.pack data FOLDER --size 64 --out runs/gpu/photographs.npz
    python -m benchmarks.gpu.pack backbone vit_small_focus --out runs/gpu/vit_small_focus.safetensors

Images are squashed to a square and keep their splits (those of seed 0 where they are drawn); weights become float16.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.gpu.tasks import pack
from benchmarks.run import OneLineParser, positive_int
from snella.data.dataset import SPLITS
from snella.data.readers.labelled import read_data
from snella.errors import UserError
from snella.models.bundled import BACKBONES


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file that is asked for and return the exit code."""
    parser = OneLineParser(
        prog="python -m benchmarks.gpu.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("data", "backbone"))
    parser.add_argument("name", help="as --data has it; or the name of a packaged backbone")
    parser.add_argument("--size", type=positive_int, default=64, help="side of the images, in pixels (default: 64)")
    parser.add_argument("--out", type=Path, required=True, help="file to write: .npz, or .safetensors")
    args = parser.parse_args(arguments)
    try:
        if args.what == "data":
            pack_data(args.name, args.size, args.out)
        else:
            pack_backbone(args.name, args.out)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {args.out.stat().st_size / 2**20:.1f} MiB")
    return 0


def pack_data(name: str, size: int, out: Path) -> None:
    """Write all images of a labelled data set, at that size. Raises UserError where it cannot be read."""
    data = read_data(name, seed=0)
    images, labels, split = [], [], []
    for number, part in enumerate(SPLITS):
        for example in (data.splits[part][i] for i in range(len(data.splits[part]))):
            images.append(np.asarray(example["image"].resize((size, size), Image.Resampling.BICUBIC)))
            labels.append(example["label"])
            split.append(number)
    pack(out, images, labels, data.classes, split)


def pack_backbone(name: str, out: Path) -> None:
    """Write the tensors of a packaged backbone in float16. Raises UserError where there is no such one."""
    if name not in BACKBONES:
        raise UserError(f"backbone {name!r} is unknown; choose from {', '.join(BACKBONES)}")
    state = BACKBONES[name].state_dict()
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: (t.half() if t.dtype == torch.float32 else t).contiguous() for key, t in state.items()}, out)


if __name__ == "__main__":
    sys.exit(main())
