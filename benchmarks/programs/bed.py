"""A task as files: images in folders of splits and classes, the backbone's weights, and what they are.

    python -m benchmarks.programs.bed packages/digits beds/digits [--seed 1]
    python -m benchmarks.programs.bed public/grocery beds/grocery --data DIR

The first word is a suite's task, the second the folder to write, which then holds train/, val/ and test/ of class
folders, weights.safetensors under timm's names, and bed.json. Data, backbone, image size and whether images may be
flipped are the task's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from snella.config.suites import read_suite_task
from snella.console import Terminal
from snella.errors import UserError
from snella.models.bundled import timm_name
from snella.runs.prepare import read_run_data
from snella.tasks.registry import task_named


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description="a task as files that other programs read")
    parser.add_argument("task", help="of a suite, as packages/digits")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", help="the folder that holds the suite's data")
    parser.add_argument("--seed", type=int, default=0, help="of splits that the data does not have")
    args = parser.parse_args(arguments)
    folder: Path = args.folder
    if folder.exists():
        raise UserError(f"{folder} exists; name another folder")
    config = read_suite_task(args.task, args.data).changed(seed=args.seed)
    data = read_run_data(config, Terminal())
    for split, images in data.splits.items():
        for i, label in enumerate(images.labels):
            place = folder / split / data.classes[label].replace("/", "-")
            place.mkdir(parents=True, exist_ok=True)
            images[i]["image"].convert("RGB").save(place / f"{i:05d}.png")
    task = task_named("classify")
    spec = task.make_spec(config, len(data.classes))
    model: Any = task.build(spec)  # timm's models have more than a Module says
    preprocessing = task.preprocessing(spec, model)
    head = {id(p) for p in model.get_classifier().parameters()}
    kept = {id(p) for p in model.parameters()} - head
    heads = {name for name, p in model.named_parameters() if id(p) not in kept}
    state = {name: t.contiguous() for name, t in model.state_dict().items() if name not in heads}
    save_file(state, folder / "weights.safetensors")
    about = {
        "architecture": timm_name(config.model.backbone),
        "backbone": config.model.backbone,
        "image_size": preprocessing.image_size,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "classes": len(data.classes),
        "augment": config.data.augment,
        "images": {split: len(images) for split, images in data.splits.items()},
    }
    (folder / "bed.json").write_text(json.dumps(about, indent=1))


if __name__ == "__main__":
    main()
