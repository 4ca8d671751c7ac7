"""`torch/NAME[:FOLDER]`: torchvision's data sets; FOLDER is `data` unless given."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from snella.data.bundled.timm_entries import create, indexed_entries, known_splits
from snella.data.images import to_rgb
from snella.data.listing import Listing
from snella.data.paths import check_exists
from snella.errors import UserError, short_reason

DEFAULT_FOLDER = "data"

_TRAIN_TEST = {"train": "train", "test": "test"}  # our split names -> timm's
_TRAIN_VAL = {"train": "train", "val": "validation"}
CLASSES = {  # timm's name -> torchvision's class and the splits that it has
    "cifar10": ("CIFAR10", _TRAIN_TEST),
    "cifar100": ("CIFAR100", _TRAIN_TEST),
    "mnist": ("MNIST", _TRAIN_TEST),
    "kmnist": ("KMNIST", _TRAIN_TEST),
    "fashion_mnist": ("FashionMNIST", _TRAIN_TEST),
    "qmnist": ("QMNIST", _TRAIN_TEST),
    "places365": ("Places365", _TRAIN_VAL),
    "imagenet": ("ImageNet", _TRAIN_VAL),
    "image_folder": ("ImageFolder", {}),  # by what is there
}


class TorchvisionDataset(Protocol):
    """The part that torchvision's data sets of labelled images share."""

    classes: Sequence[str | Sequence[str]]
    targets: Tensor | Sequence[int]

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]: ...


@dataclass(frozen=True)
class _Images:
    """Opens "SPLIT#INDEX" from data sets that hold their images in memory."""

    datasets: Mapping[str, TorchvisionDataset]

    def __call__(self, path: str) -> Image.Image:
        split, _, index = path.rpartition("#")
        return to_rgb(self.datasets[split][int(index)][0], path)


def read(name: str) -> Listing:
    """List the splits that a torchvision data set has.

    Raises:
        UserError: unknown name, or nothing in the folder (with the command that downloads it).
    """
    name, _, folder = name.partition(":")
    folder = os.path.expanduser(folder or DEFAULT_FOLDER)
    kind = "image_folder" if name.lower() == "folder" else name.lower()
    if kind not in CLASSES:
        raise UserError(f"torch/{name} is unknown; use one of {', '.join(f'torch/{known}' for known in CLASSES)}")
    splits = CLASSES[kind][1] or _folder_splits(folder)
    try:
        datasets: dict[str, TorchvisionDataset] = {
            ours: create(f"torch/{kind}", folder, theirs) for ours, theirs in splits.items()
        }
    except (RuntimeError, OSError) as error:
        raise UserError(f"torch/{name} is not in {folder} ({short_reason(error)}); {_remedy(kind, folder)}") from None
    classes = tuple(_class_name(names) for names in next(iter(datasets.values())).classes)
    for dataset in datasets.values():
        if tuple(map(_class_name, dataset.classes)) != classes:
            raise UserError(f"torch/{name}: the splits in {folder} have different class folders; make them the same")
    files: dict[str, list[tuple[str, int]]] = {
        ours: images for ours, dataset in datasets.items() if (images := getattr(dataset, "imgs", None)) is not None
    }
    if len(files) == len(datasets):  # opened and named as files
        base = os.path.abspath(folder)
        entries = {
            ours: [(os.path.relpath(path, base).replace(os.sep, "/"), label) for path, label in images]
            for ours, images in files.items()
        }
        return Listing("torch", base, classes, entries)
    labels = {ours: _labels(dataset) for ours, dataset in datasets.items()}
    classes, entries = indexed_entries(f"torch/{name}", labels, classes)
    return Listing("torch", "", classes, entries, read=_Images(datasets))


def _folder_splits(folder: str) -> dict[str, str]:
    check_exists(folder, remedy="write torch/image_folder:FOLDER")
    splits, _ = known_splits(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))
    return splits if "train" in splits else {"all": "."}


def _remedy(kind: str, folder: str) -> str:
    if kind in ("imagenet", "places365", "image_folder"):
        return f"put it there, or name its folder: torch/{kind}:FOLDER"
    call = f"torchvision.datasets.{CLASSES[kind][0]}({folder!r}, download=True)"
    return f'download it: python -c "import torchvision; {call}"'


def _labels(dataset: TorchvisionDataset) -> list[int]:
    """Return one label an image; QMNIST has a row of attributes, the class first."""
    targets = torch.as_tensor(dataset.targets)
    return targets.reshape(len(targets), -1)[:, 0].tolist()


def _class_name(names: str | Sequence[str]) -> str:
    return names if isinstance(names, str) else ", ".join(names)  # ImageNet lists synonyms
