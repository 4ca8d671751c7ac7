"""Runs that generate images, side by side: `python -m benchmarks.generated RUN... [--out FILE.png]`.

Prints held-out denoising loss, trainable parameters, memory and time of finished runs of one recipe, and draws what
each of them makes of the same seeds beside real images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table

from snella.errors import UserError
from snella.report.tables import decimal_bytes, duration
from snella.runs.folder import read_about, read_config, read_summary
from snella.tasks.generation.sample_grids import methods_figure

MAX_IMAGES = 4  # of a prompt


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, write the picture and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generated", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, help="draw the images into this file")
    args = parser.parse_args(arguments)
    console = Console()
    try:
        console.print(_table(args.runs))
        if args.out is not None:
            _draw(args.runs, args.out)
            console.print(f"picture: {args.out}", soft_wrap=True, highlight=False)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _table(runs: Sequence[Path]) -> Table:
    table = Table("method", title="held-out denoising loss", title_justify="left")
    for name in ("lr", "test", "val", "trainable", "adapter", "memory", "training"):
        table.add_column(name, justify="right")
    for run in runs:
        config, summary = read_config(run), read_summary(run)
        table.add_row(
            config.method.name,
            f"{config.loop.peak_lr:g}",
            *(f"{summary[split]['denoising_loss']:.4f}" for split in ("test", "val")),
            f"{summary['trainable_parameters']:,}",
            decimal_bytes(summary["adapter_bytes"]),
            decimal_bytes(summary["peak_memory_bytes"]),
            duration(summary["seconds"]),
        )
    return table


def _draw(runs: Sequence[Path], out: Path) -> None:
    """Draw the first images of each prompt: before tuning, by each method, and real ones."""
    config, prompts = read_config(runs[0]), read_about(runs[0])["prompts"]
    samples = {"before": runs[0] / "samples" / "before"}
    samples |= {read_config(run).method.name: run / "samples" / "after" for run in runs}
    samples["real"] = runs[0] / "samples" / "real"
    count = min(MAX_IMAGES, config.generate.samples)
    columns = {
        name: [
            Image.open(folder / f"{row * config.generate.samples + i:02d}.png").convert("RGB")
            for row in range(len(prompts))
            for i in range(count)
        ]
        for name, folder in samples.items()
    }
    methods_figure(columns, out, rows=prompts)


if __name__ == "__main__":
    sys.exit(main())
