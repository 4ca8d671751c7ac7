"""The data sets that readers produce: images with labels, in splits."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor

from snella.data.checks import ImageFacts, white_of
from snella.data.images import WHITE, ImageReader, UnreadableImage, open_image

# "image", a PIL image and a float32 tensor once transformed, with "label" (int), "mask" (Mask) or "caption" (str); open
# as the dicts that torchvision's transforms take and give are
Example = dict[str, Any]
Transform = Callable[[Example], Example]

SPLITS = ("train", "val", "test")
CROP = re.compile(r"#\d+,\d+,\d+,\d+$")  # of the names of crops, after the image's


@dataclass(frozen=True)
class Images:
    """The images of one split: `images[i]` is `{"image": 8-bit RGB PIL image, "label": int}`.

    With targets in the place of labels (a number for each class or quantity) it has "target", float32 (K,). Without
    either (for prediction) the examples hold only the image. `read` turns a path into an image; where the images are
    not files (a packaged data set), a path is just a name that `read` knows.

    >>> images = Images(("cat.jpg", "dog.jpg"), (0, 1))
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...] = ()
    read: Callable[[str], Image.Image] = open_image
    targets: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        for what, known in (("labels", self.labels), ("targets", self.targets)):
            if known and len(known) != len(self.paths):
                raise ValueError(f"{len(self.paths)} paths but {len(known)} {what}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        """Read the example. Raises UnreadableImage."""
        example: Example = {"image": self.read(self.paths[index])}
        if self.labels:
            example["label"] = self.labels[index]
        if self.targets:
            example["target"] = torch.tensor(self.targets[index])
        return example

    def chosen(self, indices: Sequence[int]) -> Images:
        """Return these images alone, in this order."""
        paths, labels, targets = (
            tuple(values[i] for i in indices) if values else () for values in (self.paths, self.labels, self.targets)
        )
        return replace(self, paths=paths, labels=labels, targets=targets)


def counted_labels(known: Iterable[int | tuple[float, ...]]) -> Counter[int]:
    """Count the images of each class, given the label of each, or its targets: whether it has each label."""
    found: Counter[int] = Counter()
    for one in known:
        found.update([k for k, value in enumerate(one) if value] if isinstance(one, tuple) else [one])
    return found


class Pictures(Protocol):
    """The part that the images of every kind of data share."""

    @property
    def paths(self) -> tuple[str, ...]: ...
    @property
    def read(self) -> Callable[[str], Image.Image]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Example: ...


Split = TypeVar("Split", bound=Pictures, covariant=True)


@dataclass(frozen=True)
class ImageData(Generic[Split]):
    """A data set as training uses it. Labels index `classes`.

    Args:
        splits: `Images`, or what another task has in their place.
        notes: licence, source and how splits were made.
        caveat: what belongs beside a result on these data, such as a published baseline.
        facts: what a look at the images found, by path.
        groups: what an image shares with others (a patient, a video), by path, where that is known.
        folder: what paths are below, where the root is a name; "" where they are not files.
    """

    layout: str
    root: str
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    skipped: tuple[UnreadableImage, ...] = ()
    notes: tuple[str, ...] = ()
    caveat: str = ""
    facts: Mapping[str, ImageFacts] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""


def with_white(data: ImageData[Any], white: int | None) -> ImageData[Any]:
    """Return the data with their 16-bit greys scaled so that `white` becomes 255, and a note where that is a choice.

    None: the largest value of the bits that they use. Images of a package stay as they are.
    """
    wide = [found.widest for found in data.facts.values() if found.widest is not None]
    chosen = white_of(wide) if white is None else white
    splits = {
        name: replace(split, read=replace(split.read, white=chosen)) if isinstance(split.read, ImageReader) else split
        for name, split in data.splits.items()
    }
    notes = data.notes
    if wide and white is None and chosen != WHITE:
        bits = f"use {chosen.bit_length()} of 16 bits (values up to {max(wide)}): {chosen} is taken for white"
        notes = (*notes, f"{len(wide)} images of 16-bit greys {bits}; --white {WHITE} takes their whole range")
    return replace(data, splits=splits, notes=notes)


def white_in(data: ImageData[Any]) -> int | None:
    """Return the value of 16-bit greys that is white in the data; None where no image has such."""
    if all(found.widest is None for found in data.facts.values()):
        return None
    return next((split.read.white for split in data.splits.values() if isinstance(split.read, ImageReader)), None)


def class_weights(images: Images, classes: Sequence[str]) -> Tensor:
    """Return loss weights in inverse proportion to the class counts, shape (K,), mean 1 over the classes that occur.

    A class without images gets weight 1.
    """
    return inverse_frequency(torch.bincount(torch.tensor(images.labels, dtype=torch.int64), minlength=len(classes)))


def inverse_frequency(counts: Tensor) -> Tensor:
    """Return weights (K,) in inverse proportion to counts (K,), mean 1 over those above 0; 1 for the others."""
    counts = counts.double()
    occurs = counts > 0
    weights = torch.where(occurs, 1 / counts.clamp(min=1), 0)
    weights = weights / weights[occurs].mean()
    return torch.where(occurs, weights, 1).float()


def folder_of(data: str) -> str:
    """Return the folder that names of images are relative to: the data's own, or the one that a manifest is in."""
    path = os.path.expanduser(data)
    return path if os.path.isdir(path) else os.path.dirname(path)


def name_in(root: str, path: str, folder: str) -> str:
    """Return what an image is called below its data, the same on every machine, with "/".

    Images that are not files have names of their own; a crop is named after its image.

    Args:
        root: the data, as a user names it: a folder, a manifest in one, or a name.
        folder: what paths are below where it is a name; "" where images are not files.
    """
    folder = folder_of(root) or "." if os.path.exists(os.path.expanduser(root)) else folder
    if not folder or not os.path.isfile(CROP.sub("", path)):
        return path.replace(os.sep, "/")
    return os.path.relpath(path, folder).replace(os.sep, "/")


def names_read(data: ImageData[Any], split: str, unreadable: Iterable[UnreadableImage]) -> list[str]:
    """Return the names, below the data's folder, of a split's images but the unreadable ones, in order."""
    left_out = {error.path for error in unreadable}
    return [name_in(data.root, path, data.folder) for path in data.splits[split].paths if path not in left_out]


def entries_of(data: ImageData[Any]) -> dict[str, dict[str, str]]:
    """Return split -> the name of each image, below the data's folder -> what is known of it.

    That is the size of its file, its label by name, its targets but those of 0, its caption, and its mask's name and
    size or what it is drawn from.
    """

    def named(path: str, file: str) -> tuple[str, str]:
        size = f"{os.path.getsize(file)} bytes" if os.path.isfile(file) else ""
        return name_in(data.root, path, data.folder), size

    found: dict[str, dict[str, str]] = {}
    for split, images in data.splits.items():
        known = found.setdefault(split, {})
        file_of = images.read.file if isinstance(images.read, ImageReader) else lambda path: path
        known_of = ("labels", "targets", "masks", "captions")
        labels, targets, masks, captions = (getattr(images, name, ()) for name in known_of)
        for i, path in enumerate(images.paths):
            name, size = named(path, file_of(path))
            label = data.classes[labels[i]] if labels and data.classes else ""
            if targets:
                pairs = zip(data.classes, targets[i], strict=True)
                label = ", ".join(f"{of} {value!r}" for of, value in pairs if value)
            mask = (images.drawn_from(i) or " ".join(named(masks[i], masks[i]))) if masks else ""
            facts = [fact for fact in (size, label, mask, captions[i] if captions else "") if fact]
            known[name] = "; ".join([*filter(None, [known.get(name)]), *facts])  # a manifest may have it twice
    return found
