"""Objects in "CVAT for images" files: an annotations.xml with an <image> for each picture, its size and its shapes.

    <image name="a.jpg" width="640" height="480" subset="train">
      <polygon label="cat" points="1.0,2.0;30.5,2.0;30.5,40.0"/>
      <box label="dog" xtl="1" ytl="2" xbr="30" ybr="40"/>
      <mask label="cat" rle="3, 5, 12" left="4" top="6" width="10" height="2"/>
    </image>

The run lengths of a mask go along the rows of its box and begin with one outside the object.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np

from snella.data.folders.names import split_of
from snella.data.folders.objects import FARTHEST, Detections, Shape
from snella.data.folders.tree import Tree, grouped, stem
from snella.data.paths import read_text
from snella.errors import UserError, listed, named

OF_IMAGES = ("polygon", "box", "mask")  # what makes boxes and masks
OTHERS = ("polyline", "points", "ellipse", "cuboid", "skeleton")  # what makes none, or not for sure


def is_cvat(found: Tree) -> bool:
    """Tell whether a tree has images and annotations of CVAT with shapes in them."""
    return bool(found.images) and any(True for _ in _files(found))


def cvat(found: Tree) -> Detections:
    """Read all annotations of CVAT in a tree. A `subset` is a split where it is called as one.

    Raises:
        UserError: a damaged file, one of videos, shapes that make neither a box nor a mask, names of several images.
    """
    read = Detections("CVAT objects")
    known, by_last = set(found.images), grouped(found.images, os.path.basename)
    for file in _files(found):
        path = found.path(file)
        try:
            root = ElementTree.fromstring(read_text(path))
            if root.find("track") is not None:
                raise UserError(f"{path} is of a video (CVAT for video); export the task as CVAT for images")
            for item in root.iter("image"):
                _read_image(item, file, known, by_last, read)
        except (ElementTree.ParseError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is not an annotation of CVAT ({error}); mend it") from None
    return read


def cvat_tags(found: Tree) -> dict[str, list[tuple[str, str, str]]]:
    """Return the tags of whole images, (image, label, subset), by the file that has them; none where there are shapes.

    Raises:
        UserError: a damaged file, a name of several images.
    """
    known, by_last = set(found.images), grouped(found.images, os.path.basename)
    tags: dict[str, list[tuple[str, str, str]]] = {}
    for file in () if is_cvat(found) else _files(found, ("tag",)):
        try:
            for item in ElementTree.fromstring(read_text(found.path(file))).iter("image"):
                if name := _image_of(item, file, known, by_last):
                    labels = [tag.attrib["label"].strip() for tag in item.iter("tag")]
                    tags.setdefault(file, []).extend((name, label, item.get("subset") or "") for label in labels)
        except (ElementTree.ParseError, ValueError, KeyError) as error:
            raise UserError(f"{found.path(file)} is not an annotation of CVAT ({error}); mend it") from None
    return tags


def _files(found: Tree, elements: Sequence[str] = (*OF_IMAGES, *OTHERS, "track")) -> Iterator[str]:
    """Yield the files of annotations, none of which is named as an image: those are of one each, as Pascal VOC's."""
    images = set(map(stem, found.images))
    for name in found.others:
        if not name.lower().endswith(".xml") or stem(name) in images:
            continue
        try:
            text = read_text(found.path(name))
        except UserError:  # not text
            continue
        if "<annotations" in text[:1000] and any(f"<{element} " in text for element in elements):
            yield name


def _read_image(
    item: ElementTree.Element, file: str, known: set[str], by_last: Mapping[str, list[str]], read: Detections
) -> None:
    name, subset = _image_of(item, file, known, by_last), item.get("subset") or ""
    if name is None:
        return  # not here: as in other formats, images without a file are no images
    size = int(item.attrib["width"]), int(item.attrib["height"])
    read.sizes[name] = size
    if split := split_of(subset) or split_of(os.path.basename(os.path.dirname(file))):
        read.splits[name] = split
    read.shapes[name] += [shape for part in item if (shape := _shape(part, size)) is not None]


def _image_of(item: ElementTree.Element, file: str, known: set[str], by_last: Mapping[str, list[str]]) -> str | None:
    """Return the image that an element is of, or None. Raises UserError where it may be several."""
    written = item.attrib["name"].replace(os.sep, "/")
    subset = item.get("subset") or ""
    folders = (os.path.dirname(file), os.path.join(os.path.dirname(file), "images"), "images", "")
    places = [os.path.join(folder, part, written) for folder in folders for part in dict.fromkeys(("", subset))]
    alike = by_last.get(os.path.basename(written), [])
    name = next((place for place in places if place in known), alike[0] if len(alike) == 1 else None)
    if name is None and alike:
        raise UserError(f"{named(written)} of {file} may be {listed(alike)}; put the images where they were")
    return name


def _shape(item: ElementTree.Element, size: tuple[int, int]) -> Shape | None:
    label, values = item.get("label", "").strip(), item.attrib
    if item.tag in OTHERS:
        raise ValueError(f"{named(label)} is a {item.tag}, which is neither a box nor an outline; leave it out")
    if item.tag == "polygon":
        points = [float(value) for point in values["points"].split(";") for value in point.split(",")]
        across, down = points[::2], points[1::2]
        return Shape(label, (min(across), min(down), max(across), max(down)), (tuple(points),))
    if item.tag == "box":
        if float(values.get("rotation", 0)):
            raise ValueError(f"the box of {named(label)} is rotated; outline it by a polygon")
        left, top, right, bottom = (float(values[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
        return Shape(label, (left, top, right, bottom))
    if item.tag == "mask":
        left, top, width, height = (int(values[part]) for part in ("left", "top", "width", "height"))
        box = (left, top, left + width, top + height)
        return Shape(label, box, runs=_runs(values["rle"], box, size))
    return None


def _runs(rle: str, box: tuple[int, int, int, int], size: tuple[int, int]) -> dict[str, Any]:
    """Return a mask's run lengths as COCO has them: of the whole image, down its columns. Raises ValueError."""
    left, top, right, bottom = box
    counts = [int(count) for count in rle.split(",")]
    inside = 0 <= left < right <= size[0] <= FARTHEST and 0 <= top < bottom <= size[1] <= FARTHEST
    if not inside or min(counts) < 0 or sum(counts) != (right - left) * (bottom - top):
        raise ValueError("the run lengths of a mask are not those of its box in the image")
    mask = np.zeros((size[1], size[0]), dtype=bool)
    part = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    mask[top:bottom, left:right] = part.reshape(bottom - top, right - left)
    flat = mask.T.ravel()
    ends = np.concatenate(([0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]))
    lengths = np.diff(ends).tolist()
    return {"size": [size[1], size[0]], "counts": [0, *lengths] if flat[0] else lengths}
