"""What is trained on where there is no network: packaged sets, folders, arrays; and a packaged or given backbone.

An array file (.npz) holds `images` (n, s, s, 3) or grey (n, s, s), uint8; `labels` (n,); `classes` (k,), names; and if
there are splits `split` (n,), 0 for train, 1 for val, 2 for test. `python -m benchmarks.gpu.pack` makes one.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from snella.config.schema import TrainConfig
from snella.config.suites import read_suite
from snella.data.dataset import SPLITS
from snella.errors import UserError, short_reason
from snella.models.bundled import BACKBONES, FOCUS, timm_name
from snella.runs.prepare import read_run_data

SUITE = "packages"  # whose settings hold for all tasks


@dataclass
class Tasks:
    """The tasks that can be trained here by name, and why others cannot."""

    configs: dict[str, TrainConfig] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """What the machine was given: data (folders, .npz files, names of packaged sets), and a file of weights."""

    data: tuple[str, ...] = ()
    checkpoint: str | None = None
    backbone: str | None = None  # timm's name of the network of that file; None: of the packaged ViT
    settings: Mapping[str, Any] = field(default_factory=dict)  # over the suite's, for all tasks


def find_tasks(given: Given, folder: Path) -> Tasks:
    """Return the suite's tasks, or those of the data given; what cannot be had is skipped with a reason.

    Args:
        folder: where arrays are unpacked to.
    """
    found = Tasks()
    console = Console(quiet=True)
    for name, config in _configs(given, folder, found.skipped):
        try:
            config = _with_backbone(config, given).changed(**given.settings)
            read_run_data(config, console)
        except UserError as error:
            found.skipped[name] = short_reason(error)
            continue
        found.configs[name] = config
    return found


def _configs(given: Given, folder: Path, skipped: dict[str, str]) -> list[tuple[str, TrainConfig]]:
    """Return names and settings of what is to be tried: of packaged sets as the suite has them."""
    suite = read_suite(SUITE)
    own = {task.name: task.config for task in suite.tasks}
    if not given.data:
        return list(own.items())
    general = own["digits"].changed(augment="flip")  # left and right matter to digits
    configs = []
    for data in given.data:
        path, name = Path(data), Path(data).stem
        try:
            if path.suffix == ".npz":
                data = str(unpack(path, folder / name))
            configs.append((name, own[data] if data in own else general.changed(data=data)))
        except UserError as error:
            skipped[name] = short_reason(error)
    return configs


def _with_backbone(config: TrainConfig, given: Given) -> TrainConfig:
    """Return the settings with a backbone that can be had here.

    Raises:
        UserError: a packaged one, whose package is missing.
    """
    name = config.model.backbone
    if given.checkpoint is not None and name == FOCUS:
        return config.changed(backbone=given.backbone or timm_name(FOCUS), checkpoint=given.checkpoint)
    if given.backbone is not None:
        return config.changed(backbone=given.backbone)
    BACKBONES[name].file()  # raises
    return config


def unpack(file: Path, folder: Path) -> Path:
    """Write the images of an array file as class folders, below folders of splits where it has them.

    Nothing is written where the folder is there: an earlier call made it.

    Raises:
        UserError: no such file, or it holds something else.
    """
    if folder.is_dir():
        return folder
    try:
        with np.load(file) as arrays:
            images, labels, classes = arrays["images"], arrays["labels"], [str(name) for name in arrays["classes"]]
            split = arrays["split"] if "split" in arrays.files else None
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} cannot be read as images, labels and classes ({short_reason(error)})") from error
    partial = folder.with_name(f"{folder.name}.partial")
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = partial / (SPLITS[split[i]] if split is not None else "") / classes[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i:06d}.png")
    partial.rename(folder)
    return folder


def pack(
    file: Path, images: Sequence[np.ndarray], labels: Sequence[int], classes: Sequence[str], split: Sequence[int]
) -> None:
    """Write an array file; images whose three channels are the same become grey."""
    stacked = np.stack(images)
    if (stacked == stacked[..., :1]).all():
        stacked = stacked[..., 0]
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        file,
        images=stacked,
        labels=np.asarray(labels, np.int64),
        classes=np.asarray(classes),
        split=np.asarray(split, np.uint8),
    )
