"""Boxes and outlines of objects: Pascal VOC and CVAT (.xml), COCO and LabelMe (.json), YOLO (.txt).

The classes are of objects, not of images: `crops` makes images of them, and outlines become masks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from snella.data.folders.cvat import cvat, is_cvat
from snella.data.folders.names import SPLIT_NAMES, split_and_rest, split_of
from snella.data.folders.objects import Detections, Shape
from snella.data.folders.tree import Tree, grouped, stem
from snella.data.paths import read_text
from snella.errors import UserError, brief, listed, short_reason
from snella.json_files import load_json
from snella.yaml_text import read_yaml

MOST = 0.5  # share of the images, or of the files of that kind, that have to go together
LOOKED_AT = 5  # files that are opened to know a format
COCO_KEYS = ('"images"', '"annotations"', '"categories"')
SHAPE_KEYS = ('"bbox"', '"segmentation"')
OTHER_COCO = ("captions", "keypoints", "panoptic", "stuff", "image_info")  # files of COCO beside those of its objects

BROKEN = (KeyError, TypeError, ValueError, AttributeError, OverflowError)  # what values of other types lead to


def detection_format(found: Tree) -> str | None:
    """Return the format of the annotations that most images have, or None; a few of them are opened."""
    return next((kind for kind, (recognises, _) in FORMATS.items() if recognises(found)), None)


def detections(found: Tree) -> Detections:
    """Read the annotations of a tree whose format is known. Raises UserError for a file that is damaged."""
    kind = detection_format(found)
    assert kind is not None
    read = FORMATS[kind][1](found)
    for name in read.shapes:
        split = next((split_of(part) for part in name.split("/")[:-1] if split_of(part)), None)
        if split and name not in read.splits:
            read.splits[name] = split
    if 0 < sum(name in read.splits for name in read.shapes) < len(read.shapes):
        outside = [name for name in read.shapes if name not in read.splits]
        raise UserError(
            f"{found.root}: some images are in splits, others ({listed(outside)}) are not; give all a split"
        )
    return read


def _is_voc(found: Tree) -> bool:
    return _goes_with(found, ".xml", lambda path: "<annotation" in _head(path) and "<object>" in read_text(path))


def _voc(found: Tree) -> Detections:
    read = Detections("Pascal VOC boxes")
    for name, file in _annotated(found, ".xml"):
        try:
            root = ElementTree.parse(found.path(file)).getroot()
            size = root.find("size")
            width, height = (int(size.findtext(side) or 0) if size is not None else 0 for side in ("width", "height"))
            shapes = [_voc_shape(item) for item in root.iter("object")]
        except (ElementTree.ParseError, ValueError, TypeError, LookupError) as error:
            raise UserError(f"{found.path(file)} is not a Pascal VOC annotation: {error}; mend it") from None
        if width and height:
            read.sizes[name] = width, height
        read.shapes[name] += shapes
    for file in found.others:
        split = SPLIT_NAMES.get(os.path.splitext(os.path.basename(file))[0])
        if split and os.path.dirname(file).endswith("ImageSets/Main"):
            stems = set(read_text(found.path(file)).split())
            read.splits |= {name: split for name in read.shapes if stem(name) in stems}
    return read


def _voc_shape(item: ElementTree.Element) -> Shape:
    box = item.find("bndbox")
    if box is None:
        raise ValueError("an object has no bndbox")
    left, top, right, bottom = (float(box.findtext(side) or "") for side in ("xmin", "ymin", "xmax", "ymax"))
    return Shape((item.findtext("name") or "").strip(), (max(0.0, left - 1), max(0.0, top - 1), right, bottom))


def _coco_files(found: Tree, *, objects: bool = True) -> list[str]:
    """Return the files in COCO's form whose annotations are of objects, or of whole images."""
    files = [name for name in found.others if name.lower().endswith(".json")]
    files = [name for name in files if not any(other in os.path.basename(name).lower() for other in OTHER_COCO)]
    stems = {stem(name) for name in found.images}
    texts = {name: _all(found.path(name)) for name in files if stem(name) not in stems}
    texts = {name: text for name, text in texts.items() if all(key in text for key in COCO_KEYS)}
    return [name for name, text in texts.items() if any(key in text for key in SHAPE_KEYS) == objects]


def _coco(found: Tree) -> Detections:
    read = Detections("COCO objects")
    by_last = grouped(found.images, os.path.basename)
    for file in _coco_files(found):
        content, split = _json(found.path(file)), _coco_split(file)
        try:
            labels = {item["id"]: str(item["name"]) for item in content["categories"]}
            names: dict[Any, str] = {}
            for item in content["images"]:
                name = _coco_name(item, file, by_last)
                if name is not None:
                    names[item["id"]] = name
                    read.sizes[name] = int(item["width"]), int(item["height"])
                    read.shapes[name] += []
                    read.splits |= {name: split} if split else {}
            for item in content["annotations"]:
                if item["image_id"] in names:
                    read.shapes[names[item["image_id"]]].append(_coco_shape(item, labels))
        except BROKEN as error:
            raise UserError(f"{found.path(file)} is not a COCO annotation ({error!r}); mend it") from None
    return read


def coco_tags(found: Tree) -> dict[str, list[tuple[str, str, str]]]:
    """Return the labels of whole images, (image, label, split or ""), by the file in COCO's form that has them.

    iNaturalist and camera traps have such files: annotations of a category without a box or an outline.

    Raises:
        UserError: a damaged file.
    """
    by_last = grouped(found.images, os.path.basename)
    tags: dict[str, list[tuple[str, str, str]]] = {}
    for file in _coco_files(found, objects=False):
        content, split = _json(found.path(file)), _coco_split(file)
        try:
            labels = {item["id"]: str(item["name"]) for item in content["categories"]}
            names = {item["id"]: _coco_name(item, file, by_last) for item in content["images"]}
            rows = [(names[item["image_id"]], labels[item["category_id"]]) for item in content["annotations"]]
        except BROKEN as error:
            raise UserError(f"{found.path(file)} is not a COCO annotation ({error!r}); mend it") from None
        if told := [(name, label, split or "") for name, label in rows if name is not None]:
            tags[file] = told
    return tags


def _coco_split(file: str) -> str | None:
    return split_and_rest(stem(file))[0] or split_of(os.path.basename(os.path.dirname(file)))


def _coco_name(item: Mapping[str, Any], file: str, by_last: Mapping[str, Sequence[str]]) -> str | None:
    """Return the image that an entry of a file names: by its path, or by its name where one image alone has it."""
    written = str(item["file_name"])
    near = f"{os.path.dirname(file)}/{written}".lstrip("/")
    alike = by_last.get(os.path.basename(written), ())
    return next((name for name in (written, near) if name in alike), alike[0] if len(alike) == 1 else None)


def _coco_shape(item: Mapping[str, Any], labels: Mapping[Any, str]) -> Shape:
    left, top, width, height = map(float, item["bbox"])
    outline = item.get("segmentation") or ()
    runs = outline if isinstance(outline, dict) else None
    outlines = () if runs else tuple(tuple(map(float, part)) for part in outline)
    return Shape(labels[item["category_id"]], (left, top, left + width, top + height), outlines, runs)


def _is_yolo(found: Tree) -> bool:
    return _goes_with(found, ".txt", lambda path: is_yolo_text(read_text(path)))


def is_yolo_text(text: str) -> bool:
    """Tell whether every line of a text is a class number and four or more shares of an image's sides."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    try:
        return bool(lines) and all(
            len(line) >= 5 and _is_class_number(line[0]) and all(-0.01 <= float(part) <= 1.01 for part in line[1:])
            for line in lines
        )
    except ValueError:
        return False


def _is_class_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _yolo(found: Tree) -> Detections:
    read = Detections("YOLO boxes", relative=True)
    names, poses = _yolo_names(found), _has_keypoints(found)
    for name, file in _annotated(found, ".txt"):
        read.shapes[name] += []
        text = read_text(found.path(file))
        if text.strip() and not is_yolo_text(text):
            raise UserError(f"{found.path(file)} is not a YOLO annotation, CLASS X Y WIDTH HEIGHT a line; mend it")
        for line in filter(str.strip, text.splitlines()):
            label, *numbers = line.split()
            values = [float(number) for number in numbers]
            if len(values) % 2 == 0 and len(values) >= 6 and not poses:  # an outline
                box = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
                read.shapes[name].append(Shape(names.get(int(label), label), box, (tuple(values),)))
                continue
            x, y, width, height = values[0], values[1], values[2], values[3]
            box = x - width / 2, y - height / 2, x + width / 2, y + height / 2
            read.shapes[name].append(Shape(names.get(int(label), label), box))
    return read


def _has_keypoints(found: Tree) -> bool:
    """Tell whether a .yaml says that after the box of each line come the key points of a pose."""
    files = [found.path(name) for name in found.others if name.lower().endswith((".yaml", ".yml"))]
    return any(line.startswith("kpt_shape:") for path in files for line in _all(path).splitlines())


def _yolo_names(found: Tree) -> dict[int, str]:
    """Return the classes' names from data.yaml, obj.names or classes.txt; none where there is no such file."""
    for file in found.others:
        path, last = found.path(file), os.path.basename(file).lower()
        if last.endswith((".yaml", ".yml")):
            names = _yaml_names(path)
            if names:
                return names
        if last in ("classes.txt", "obj.names", "labels.names"):
            return dict(enumerate(line.strip() for line in read_text(path).splitlines() if line.strip()))
    return {}


def _yaml_names(path: str) -> dict[int, str]:
    text = read_text(path)
    try:
        content = read_yaml(text)
    except UserError as error:
        if "names:" in text:
            raise UserError(f"{path}: {error}; mend it, for it names the classes") from None
        return {}
    names = content.get("names") if isinstance(content, dict) else None
    pairs = dict(enumerate(names)) if isinstance(names, list) else names if isinstance(names, dict) else {}
    for number, name in pairs.items():
        if not _is_class_number(str(number)) or isinstance(name, bool) or not isinstance(name, (str, int, float)):
            raise UserError(
                f"{path}: names: {brief(number)}: {brief(name)} is not a class number with its name; mend it, and put "
                "names such as yes, no and null in quotes"
            )
    return {int(number): str(name) for number, name in pairs.items()}


def _is_labelme(found: Tree) -> bool:
    return _goes_with(found, ".json", lambda path: '"shapes"' in read_text(path) and '"points"' in read_text(path))


def _labelme(found: Tree) -> Detections:
    read = Detections("LabelMe outlines")
    for name, file in _annotated(found, ".json"):
        content = _json(found.path(file))
        try:
            if content.get("imageWidth") and content.get("imageHeight"):
                read.sizes[name] = int(content["imageWidth"]), int(content["imageHeight"])
            read.shapes[name] += []
            for item in content["shapes"]:
                points = [(float(x), float(y)) for x, y in item["points"]]
                columns, rows = zip(*points, strict=True)
                box = min(columns), min(rows), max(columns), max(rows)
                if item.get("shape_type", "polygon") == "polygon":
                    outline = tuple(value for point in points for value in point)
                elif item["shape_type"] == "rectangle":
                    outline = (box[0], box[1], box[2], box[1], box[2], box[3], box[0], box[3])
                else:
                    raise ValueError(f"shapes of type {item['shape_type']} are not read")
                read.shapes[name].append(Shape(str(item["label"]), box, (outline,)))
        except BROKEN as error:
            raise UserError(f"{found.path(file)} is not a LabelMe annotation ({error!r}); mend it") from None
    return read


FORMATS: dict[str, tuple[Callable[[Tree], bool], Callable[[Tree], Detections]]] = {
    "CVAT": (is_cvat, cvat),
    "Pascal VOC": (_is_voc, _voc),
    "COCO": (lambda found: bool(found.images and _coco_files(found)), _coco),
    "YOLO": (_is_yolo, _yolo),
    "LabelMe": (_is_labelme, _labelme),
}


def _annotated(found: Tree, ending: str) -> Iterator[tuple[str, str]]:
    """Yield images with the file of their stem: beside them, in the folder `labels` for `images`, or the only one."""
    files = grouped((name for name in found.others if name.lower().endswith(ending)), stem)
    images = grouped(found.images, stem)
    for name in found.images:
        near = files.get(stem(name), [])
        folder = os.path.dirname(name)
        beside = {folder, "/".join("labels" if part == "images" else part for part in folder.split("/"))}
        file = next((file for file in near if os.path.dirname(file) in beside), None)
        if file is None and len(near) == 1 and len(images[stem(name)]) == 1:
            file = near[0]
        if file is not None:
            yield name, file


def _goes_with(found: Tree, ending: str, holds: Callable[[str], bool]) -> bool:
    """Tell whether most images, or most files of an ending, go together, and the first of these files are of a kind."""
    pairs = list(_annotated(found, ending))
    files = sum(name.lower().endswith(ending) for name in found.others)
    if not pairs or (len(pairs) < MOST * len(found.images) and len(pairs) < MOST * files):
        return False
    full = [found.path(file) for _, file in pairs if os.path.getsize(found.path(file))][:LOOKED_AT]
    try:
        return bool(full) and sum(map(holds, full)) > len(full) / 2
    except UserError:  # not text
        return False


def _head(path: str) -> str:
    return read_text(path)[:1000]


def _all(path: str) -> str:
    try:
        return read_text(path)
    except UserError:
        return ""


def _json(path: str) -> dict[str, Any]:
    try:
        content = load_json(read_text(path))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({short_reason(error)}); mend it") from None
    return content if isinstance(content, dict) else {}


def labels_of(read: Detections) -> Sequence[str]:
    return [shape.label for shapes in read.shapes.values() for shape in shapes]
