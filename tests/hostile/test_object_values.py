"""Right values of objects: the pixels of each crop and the class of each outline, whatever the numbers of classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snella.data.folders.choices import Choices
from snella.data.readers.labelled import read_data
from snella.data.readers.masked import read_masked_data

SIZE = (40, 30)
# class -> colour and box (left, top, right, bottom), the last two outside
OBJECTS = {
    "cat": ((200, 0, 0), (3, 4, 11, 12)),
    "ape": ((0, 200, 0), (20, 2, 32, 22)),
    "dog": ((0, 0, 200), (1, 18, 9, 28)),
}
NAMES = tuple(OBJECTS)


def corners(name: str) -> list[int]:
    """Return an outline that covers the box: Pillow counts its right and lower edge in."""
    left, top, right, bottom = OBJECTS[name][1]
    return [left, top, right - 1, top, right - 1, bottom - 1, left, bottom - 1]


def coco(root: Path, shift: int) -> None:
    ids = {name: shift * (k + 1) + 4 for k, name in enumerate(NAMES)}
    boxes = [
        {"id": 10 * i + k, "image_id": i, "category_id": ids[n], "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]],
         "segmentation": [corners(n)]}
        for i in range(8) for k, (n, (_, b)) in enumerate(OBJECTS.items())
    ]  # fmt: skip
    images = [{"id": i, "file_name": f"{i}.png", "width": SIZE[0], "height": SIZE[1]} for i in range(8)]
    categories = [{"id": ids[name], "name": name} for name in reversed(NAMES)]
    (root / "instances.json").write_text(
        json.dumps({"images": images[::-1], "annotations": boxes, "categories": categories})
    )


def yolo(root: Path, outlines: bool) -> None:
    lines = []
    for k, (name, (_, (left, top, right, bottom))) in enumerate(OBJECTS.items()):
        middle = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
        values = corners(name) if outlines else middle
        lines.append(f"{k} " + " ".join(f"{value / SIZE[i % 2]:.8f}" for i, value in enumerate(values)))
    for i in range(8):
        (root / f"{i}.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text(f"names: [{', '.join(NAMES)}]")


def voc(root: Path) -> None:
    for i in range(8):
        objects = "".join(
            f"<object><name>{n}</name><bndbox><xmin>{b[0] + 1}</xmin><ymin>{b[1] + 1}</ymin><xmax>{b[2]}</xmax>"
            f"<ymax>{b[3]}</ymax></bndbox></object>"
            for n, (_, b) in OBJECTS.items()
        )
        size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>"
        (root / f"{i}.xml").write_text(f"<annotation>{size}{objects}</annotation>")


def labelme(root: Path) -> None:
    for i in range(8):
        shapes = [{"label": n, "points": np.reshape(corners(n), (4, 2)).tolist()} for n in NAMES]
        (root / f"{i}.json").write_text(json.dumps({"shapes": shapes, "imageWidth": SIZE[0], "imageHeight": SIZE[1]}))


WAYS = {
    "COCO, ids from 5": lambda root: coco(root, 1),
    "COCO, ids with gaps": lambda root: coco(root, 7),
    "YOLO boxes": lambda root: yolo(root, False),
    "YOLO outlines": lambda root: yolo(root, True),
    "Pascal VOC": voc,
    "LabelMe": labelme,
}
OUTLINES = [name for name in WAYS if name not in ("Pascal VOC", "YOLO boxes")]


def write(root: Path, way: str) -> str:
    picture = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    for color, (left, top, right, bottom) in OBJECTS.values():
        picture[top:bottom, left:right] = color
    for i in range(8):
        Image.fromarray(picture).save(root / f"{i}.png")
    WAYS[way](root)
    return str(root)


@pytest.mark.parametrize("way", WAYS)
def test_a_crop_shows_its_object_and_nothing_else(way: str, tmp_path: Path) -> None:
    data = read_data(write(tmp_path, way), seed=0, choices=Choices(crops=True))
    assert data.classes == tuple(sorted(NAMES))
    assert sum(map(len, data.splits.values())) == 24
    for images in data.splits.values():
        for i, label in enumerate(images.labels):
            color, (left, top, right, bottom) = OBJECTS[data.classes[label]]
            pixels = np.asarray(images[i]["image"])
            assert (pixels == color).all()
            edge = 0 if way in ("Pascal VOC", "YOLO boxes") or "COCO" in way else 1  # of outlines, the last pixel
            assert pixels.shape[:2] == (bottom - top - edge, right - left - edge)


@pytest.mark.parametrize("way", OUTLINES)
def test_a_mask_has_the_class_of_each_object_at_its_pixels(way: str, tmp_path: Path) -> None:
    data = read_masked_data(write(tmp_path, way), seed=0)
    assert data.classes == ("background", *sorted(NAMES))
    expected = np.zeros((SIZE[1], SIZE[0]), int)
    for name, (_, (left, top, right, bottom)) in OBJECTS.items():
        expected[top:bottom, left:right] = data.classes.index(name)
    for images in data.splits.values():
        for i in range(len(images)):
            assert (np.asarray(images[i]["mask"]) == expected).all()
