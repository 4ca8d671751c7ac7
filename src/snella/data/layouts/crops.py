"""Detection data made into images of one object each, to classify, or into masks, to segment."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from snella.data.folders.detections import detection_format, detections, labels_of
from snella.data.folders.objects import Box, Detections, Shape
from snella.data.folders.tree import Tree, tree
from snella.data.images import ImageReader, UnreadableImage, decode, image_size
from snella.data.listing import Entry, Listing, label_entries
from snella.data.masks.class_names import ClassNames
from snella.data.masks.files import MaskCode, to_classes
from snella.data.masks.listing import MaskListing
from snella.errors import UserError, counted

BACKGROUND = "background"


def crops(found: Tree) -> Listing:
    """List the boxes of a detection data set as images of their classes, named PATH#LEFT,TOP,RIGHT,BOTTOM.

    Images of another size than the annotations say, and those that cannot be read, are left out.

    Raises:
        UserError: annotations that cannot be read, no box.
    """
    read = detections(found)
    label_of: dict[str, str] = {}
    split_of_box: dict[str, str] = {}
    skipped: list[UnreadableImage] = []
    flat, twice = 0, set()
    for image, shapes in read.shapes.items():
        try:
            size = _checked_size(found.root, read, image)
        except UnreadableImage as error:
            skipped.append(error)
            continue
        for shape in shapes:
            left, top, right, bottom = _inside(_pixels(shape.box, size) if read.relative else shape.box, size)
            if left >= right or top >= bottom:
                flat += 1
                continue
            name = f"{image}#{left},{top},{right},{bottom}"
            if label_of.setdefault(name, shape.label) != shape.label:
                twice.add(name)
            split_of_box[name] = read.splits.get(image, "all")
    names = [name for name in label_of if name not in twice]
    if not names:
        raise UserError(f"{found.root}: no image has a box ({read.in_words()}); check the annotations")
    classes, entries = label_entries(names, [label_of[name] for name in names])
    by_split: dict[str, list[Entry]] = defaultdict(list)
    for name, label in entries:
        by_split[split_of_box[name]].append((name, label))
    notes = [*found.notes, f"an image for each box; the boxes of one image stay in one split ({read.in_words()})"]
    notes += [f"{counted(flat, 'box', 'boxes')} without an area left out"] if flat else []
    notes += [f"{counted(len(twice), 'box', 'boxes')} of two classes left out"] if twice else []
    notes += _without(found, read)
    return Listing(
        f"crops of {read.kind}",
        found.root,
        classes,
        dict(by_split),
        read=CutBoxes(),
        notes=tuple(notes),
        skipped=tuple(skipped),
    )


class CutBoxes(ImageReader):
    """Reads the parts of image files that PATH#LEFT,TOP,RIGHT,BOTTOM names."""

    def decoded(self, name: str) -> Image.Image:
        left, top, right, bottom = map(int, name.rpartition("#")[2].split(","))
        return _decoded(self.file(name)).crop((left, top, right, bottom))

    def file(self, name: str) -> str:
        return name.rpartition("#")[0]


@lru_cache(maxsize=2)
def _decoded(path: str) -> Image.Image:
    return decode(path, path)


def has_outlines(root: str) -> bool:
    """Tell whether a folder holds images whose objects are all outlined."""
    if not os.path.isdir(root):
        return False
    found = tree(root)
    kind = detection_format(found)
    if kind in (None, "Pascal VOC"):
        return False
    shapes = [shape for shapes in detections(found).shapes.values() for shape in shapes]
    return bool(shapes) and all(shape.outlines or shape.runs for shape in shapes)


def outlined(found: Tree) -> MaskListing:
    """List the images of a data set of outlines (COCO, LabelMe, YOLO) with the masks that these draw.

    What no outline holds is the class "background". Where two objects overlap the smaller one is on top.

    Raises:
        UserError: annotations that cannot be read, boxes without outlines.
    """
    read = detections(found)
    boxes = sum(not shape.outlines and not shape.runs for shapes in read.shapes.values() for shape in shapes)
    if boxes:
        raise UserError(
            f"{found.root}: {counted(boxes, 'object')} have a box and no outline ({read.in_words()}), which makes no "
            "mask; draw outlines, or add --task classify --crops to classify what is in the boxes"
        )
    classes = label_entries(*[labels_of(read)] * 2)[0]
    if not classes:
        raise UserError(f"{found.root}: no image has an outline ({read.in_words()}); check the annotations")
    drawn = Outlines(found.root, read, {label: value for value, label in enumerate(classes, start=1)})
    splits: dict[str, list[tuple[str, str]]] = defaultdict(list)
    skipped: list[UnreadableImage] = []
    for image in read.shapes:
        try:
            size = _checked_size(found.root, read, image)
            for shape in read.shapes[image]:
                _check_runs(shape, size, found.path(image))
        except UnreadableImage as error:
            skipped.append(error)
        else:
            splits[read.splits.get(image, "all")].append((image, image))
    if not splits:
        raise UserError(f"{found.root}: none of the images can be used, the first: {skipped[0]}; check the files")
    names = ClassNames(found.root, (BACKGROUND, *classes), tuple(range(len(classes) + 1)))
    notes = (
        *found.notes,
        f"masks drawn from outlines, the rest is {BACKGROUND} ({read.in_words()})",
        *_without(found, read),
    )
    return MaskListing(
        f"masks of {read.kind}",
        found.root,
        dict(splits),
        names,
        notes,
        read_mask=drawn,
        skipped=tuple(skipped),
    )


@dataclass(frozen=True, eq=False)
class Outlines:
    """The masks of images that the outlines of their objects draw."""

    root: str
    found: Detections
    values: dict[str, int]

    def drawn_from(self, path: str) -> str:
        """Return a digest of what an image file's mask is drawn from."""
        shapes = [(shape.label, shape.outlines, shape.runs) for shape in self.found.shapes[self._name(path)]]
        return blake2b(json.dumps(shapes).encode(), digest_size=8).hexdigest()

    def _name(self, path: str) -> str:
        return os.path.relpath(path, self.root).replace(os.sep, "/")

    def __call__(self, path: str, code: MaskCode) -> Tensor:
        """Return class indices of an image file's mask, (h, w) int16. Raises UnreadableImage."""
        name = self._name(path)
        size = _checked_size(self.root, self.found, name)
        mask = np.zeros((size[1], size[0]), dtype=np.uint16)
        inside = [self._inside(shape, size) for shape in self.found.shapes[name]]
        order = sorted(range(len(inside)), key=lambda i: -int(inside[i].sum()))
        for i in order:
            mask[inside[i]] = self.values[self.found.shapes[name][i].label]
        return to_classes(mask, code, path)

    def _inside(self, shape: Shape, size: tuple[int, int]) -> np.ndarray:
        if shape.runs is not None:
            return runs_to_mask(shape.runs)
        picture = Image.new("1", size)
        draw = ImageDraw.Draw(picture)
        for outline in shape.outlines:
            # shares have a few decimals: 0.7 of 30 must not end at 20.99, a pixel before 21
            shares = self.found.relative
            scaled = [round(v * size[i % 2], 2) for i, v in enumerate(outline)] if shares else list(outline)
            if len(scaled) >= 6:
                draw.polygon(scaled, fill=1)
        return np.asarray(picture)


def runs_to_mask(runs: Mapping[str, Any]) -> np.ndarray:
    """Return COCO's run lengths, a list or its compressed text, as a mask (h, w) of bool.

    Runs go down the columns and begin with one outside the object. In the text each number is written five bits a
    letter, least first, from "0" on; from the fourth number on it is the difference to the one before the last.
    """
    height, width = runs["size"]
    counts = _run_lengths(runs["counts"])
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(width, height).T


def _check_runs(shape: Shape, size: tuple[int, int], path: str) -> None:
    """Raise UnreadableImage where an object's run lengths, if it has some, are not those of a mask of the size."""
    if shape.runs is None:
        return
    try:
        counts = _run_lengths(shape.runs["counts"])
        fits = list(shape.runs["size"]) == [size[1], size[0]] and sum(counts) == size[0] * size[1]
        fits = fits and all(isinstance(count, int) and count >= 0 for count in counts)
    except (KeyError, TypeError, ValueError, IndexError):
        fits = False
    if not fits:
        raise UnreadableImage(path, "the run lengths of an object are not those of a mask of its size; mend them")


def _run_lengths(counts: str | list[int]) -> list[int]:
    """Return run lengths, whichever way they are written."""
    if isinstance(counts, str):
        numbers: list[int] = []
        value, shift = 0, 0
        for letter in counts.encode():
            bits = letter - 48
            value |= (bits & 31) << shift
            shift += 5
            if not bits & 32:
                value -= (1 << shift) if bits & 16 else 0
                numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
                value, shift = 0, 0
        return numbers
    return counts


def _checked_size(root: str, read: Detections, image: str) -> tuple[int, int]:
    """Return an image's size. Raises UnreadableImage where the annotations are of another."""
    path = os.path.join(root, image)
    size = image_size(path)
    said = read.sizes.get(image, size)
    if said != size:
        raise UnreadableImage(path, f"annotated as {said[0]} x {said[1]}, image {size[0]} x {size[1]}")
    return size


def _pixels(box: Box, size: tuple[int, int]) -> Box:
    return box[0] * size[0], box[1] * size[1], box[2] * size[0], box[3] * size[1]


def _inside(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    return max(0, round(left)), max(0, round(top)), min(size[0], round(right)), min(size[1], round(bottom))


def _without(found: Tree, read: Detections) -> list[str]:
    rest = sum(name not in read.shapes for name in found.images)
    return [f"{counted(rest, 'image')} without an annotation left out"] if rest else []
