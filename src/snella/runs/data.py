"""The data of a run, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from snella.config.schema import SMOKE_PER_CLASS, TrainConfig
from snella.console import checking_images, print_line
from snella.data.dataset import ImageData
from snella.tasks.registry import task_named


def read_run_data(config: TrainConfig, console: Console) -> ImageData:
    """Return the data of a run, the same at every call: splits come from the seed, --smoke's few images from them."""
    task = task_named(config.task)
    with checking_images(console) as progress:
        data = task.read(config, progress)
    if config.smoke:
        data = replace(data, splits={name: task.subset(part, SMOKE_PER_CLASS) for name, part in data.splits.items()})
    return data


def tell(data: ImageData, console: Console) -> None:
    """Say what was found, with licence and source."""
    counts = ", ".join(f"{len(images):,} {name}" for name, images in data.splits.items())
    classes = f" {len(data.classes)} classes," if data.classes else ""
    print_line(console, f"{data.root}: {data.layout},{classes} {counts} images")
    for note in data.notes:
        print_line(console, f"  {note}")
    if data.skipped:
        print_line(console, f"  {len(data.skipped)} unreadable images left out, the first: {data.skipped[0]}")
