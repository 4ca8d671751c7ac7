"""What the readers produce: images with labels, in splits."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor

from snella.data.images import UnreadableImage, open_image
from snella.errors import UserError

SPLITS = ("train", "val", "test")

Entry = tuple[str, int]  # an image's name, relative to its listing's folder, and its label


@dataclass(frozen=True)
class Images:
    """The images of one split: `images[i]` is `{"image": 8-bit RGB PIL image, "label": int}`.

    Without labels (for prediction) the examples hold only the image. `read` turns a path into an image; where the
    images are no files (a packaged data set), a path is just a name that `read` knows.

    >>> images = Images(("cat.jpg", "dog.jpg"), (0, 1))
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...] = ()
    read: Callable[[str], Image.Image] = open_image

    def __post_init__(self) -> None:
        if self.labels and len(self.labels) != len(self.paths):
            raise ValueError(f"{len(self.paths)} paths but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, object]:
        """Raises UnreadableImage."""
        example: dict[str, object] = {"image": self.read(self.paths[index])}
        if self.labels:
            example["label"] = self.labels[index]
        return example


Split = TypeVar("Split")


@dataclass(frozen=True)
class ImageData(Generic[Split]):
    """A data set as training uses it. Labels index `classes`; notes tell licence, source and how splits were made.

    `splits` holds `Images`, or what another task has in their place.
    """

    layout: str
    root: str
    classes: tuple[str, ...]
    splits: dict[str, Split]
    skipped: tuple[UnreadableImage, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """What a layout says it holds, before any image is opened.

    `splits` has "all" alone where the layout has no splits, otherwise some of "train", "val", "test".
    """

    layout: str
    folder: str  # joined before every name; "" where names are no files
    classes: tuple[str, ...]
    splits: dict[str, list[Entry]]
    read: Callable[[str], Image.Image] = open_image
    notes: tuple[str, ...] = ()
    skipped: tuple[UnreadableImage, ...] = ()  # found unreadable while listing
    fixed_classes: bool = False  # published label set: a class may have no image in train

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def images(self, split: str) -> Images:
        entries = self.splits[split]
        return Images(tuple(self.path(name) for name, _ in entries), tuple(label for _, label in entries), self.read)


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sort key with numbers by value ("class 2" before "class 10"), the same on every system."""
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def labelled(names: Sequence[str], labels: Sequence[str]) -> tuple[tuple[str, ...], list[Entry]]:
    """Classes in natural order of the labels found, and the entries."""
    classes = tuple(sorted(set(labels), key=natural_order))
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:  # a folder of an old archive
            raise UserError(f"the name of class {name!a} is not UTF-8; rename it") from None
    index = {name: label for label, name in enumerate(classes)}
    return classes, [(name, index[label]) for name, label in zip(names, labels, strict=True)]


def class_weights(images: Images, classes: Sequence[str]) -> Tensor:
    """Loss weights in inverse proportion to the class counts, shape (K,), mean 1 over the classes that occur.

    A class without images gets weight 1.
    """
    return inverse_frequency(torch.bincount(torch.tensor(images.labels, dtype=torch.int64), minlength=len(classes)))


def inverse_frequency(counts: Tensor) -> Tensor:
    """Weights (K,) in inverse proportion to counts (K,), mean 1 over those above 0; 1 for the others."""
    counts = counts.double()
    occurs = counts > 0
    weights = torch.where(occurs, 1 / counts.clamp(min=1), 0)
    weights = weights / weights[occurs].mean()
    return torch.where(occurs, weights, 1).float()
