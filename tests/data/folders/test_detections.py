from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from snella.data.folders.choices import NO_CHOICE, Choices
from snella.data.folders.detections import detection_format
from snella.data.folders.tree import tree
from snella.data.images import open_image
from snella.data.layouts.crops import runs_to_mask
from snella.data.readers.captioned import is_captioned, read_captioned_data
from snella.data.readers.labelled import read_data
from snella.data.readers.masked import is_masked, read_masked_data
from snella.errors import UserError
from snella.tasks.registry import task_for
from support.downloads import SIZE, Files, lay, photos

CROPS = Choices(crops=True)
WIDTH, HEIGHT = SIZE
BOXES = {"cat": (2, 3, 12, 13), "dog": (10, 4, 20, 19)}  # left, top, right, bottom; in every image


def voc() -> Files:
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{b[0] + 1}</xmin><ymin>{b[1] + 1}</ymin><xmax>{b[2]}</xmax>"
        f"<ymax>{b[3]}</ymax></bndbox></object>"
        for name, b in BOXES.items()
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    text = f"<annotation>{size}{objects}</annotation>"
    return photos("JPEGImages") | {f"Annotations/{i}.xml": text for i in range(8)}


def coco(outlined: bool = True) -> Files:
    images = [{"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i in range(8)]
    annotations = [
        {
            "image_id": i,
            "category_id": 5 + k,
            "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]],
            "segmentation": [corners(b)] if outlined else [],
        }
        for i in range(8)
        for k, b in enumerate(BOXES.values())
    ]
    categories = [{"id": 5 + k, "name": name} for k, name in enumerate(BOXES)]
    content = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    return photos("train2017") | {
        "annotations/instances_train2017.json": content,
        "annotations/captions_train2017.json": "{}",
    }


def yolo(folder: str = "labels", outlined: bool = False) -> Files:
    lines = []
    for k, (left, top, right, bottom) in enumerate(BOXES.values()):
        middle = (
            (left + right) / 2 / WIDTH,
            (top + bottom) / 2 / HEIGHT,
            (right - left) / WIDTH,
            (bottom - top) / HEIGHT,
        )
        values = [v / SIZE[i % 2] for i, v in enumerate(corners((left, top, right, bottom)))] if outlined else middle
        lines.append(" ".join(map(str, (k, *values))))
    files = photos("train/images") | {f"train/{folder}/{i}.txt": "\n".join(lines) for i in range(8)}
    return files | {"data.yaml": "names: [cat, dog]\nnc: 2\n"}


def labelme() -> Files:
    shapes = [
        {"label": name, "shape_type": "rectangle", "points": [[b[0], b[1]], [b[2], b[3]]]} for name, b in BOXES.items()
    ]
    text = json.dumps({"shapes": shapes, "imageWidth": WIDTH, "imageHeight": HEIGHT, "imagePath": "x"})
    return photos("set") | {f"set/{i}.json": text for i in range(8)}


def cvat() -> Files:
    outlines = "".join(
        f'<polygon label="{name}" points="{";".join(f"{x},{y}" for x, y in pairs(corners(b)))}" z_order="0"/>'
        for name, b in BOXES.items()
    )
    images = "".join(
        f'<image id="{i}" name="{i}.jpg" width="{WIDTH}" height="{HEIGHT}">{outlines}</image>' for i in range(8)
    )
    return photos("images") | {"annotations.xml": f"<annotations><version>1.1</version>{images}</annotations>"}


def pairs(values: list[int]) -> list[tuple[int, int]]:
    return list(zip(values[::2], values[1::2], strict=True))


def corners(box: tuple[int, int, int, int]) -> list[int]:
    left, top, right, bottom = box
    return [left, top, right, top, right, bottom, left, bottom]


def refused(data: str, choices: Choices = NO_CHOICE) -> str:
    with pytest.raises(UserError) as caught:
        read_data(data, seed=0, choices=choices)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FORMATS = {"Pascal VOC": voc(), "COCO": coco(), "YOLO": yolo(), "LabelMe": labelme(), "CVAT": cvat()}


@pytest.mark.parametrize("kind", FORMATS)
def test_objects_are_no_classes_of_images_but_crops_are(tmp_path: Path, kind: str) -> None:
    root = lay(tmp_path, FORMATS[kind])
    assert detection_format(tree(root)) == kind
    text = refused(root)
    assert "8 images with 16 objects (cat 8, dog 8)" in text
    assert "add --crops" in text
    data = read_data(root, seed=0, choices=CROPS)
    assert data.classes == ("cat", "dog")
    assert sum(len(images) for images in data.splits.values()) == 16
    images = data.splits["train"]
    for index, label in enumerate(images.labels):
        left, top, right, bottom = BOXES[data.classes[label]]
        whole = np.asarray(open_image(images.paths[index].partition("#")[0]))
        assert np.array_equal(np.asarray(images[index]["image"]), whole[top:bottom, left:right])


@pytest.mark.parametrize("kind", FORMATS)
def test_crops_of_one_image_stay_in_one_split(tmp_path: Path, kind: str) -> None:
    data = read_data(lay(tmp_path, FORMATS[kind]), seed=0, choices=CROPS)
    sources = [{path.partition("#")[0] for path in images.paths} for images in data.splits.values()]
    assert sum(map(len, sources)) == len(set.union(*sources)) == 8
    assert all(sources)


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        ("names: ['no', cat]", ("cat", "no")),
        ("names:\n  0: no one\n  1: cat", ("cat", "no one")),
        ("names: {1: 7, 0: 2024-01-01}", ("7", "2024-01-01")),
        ("nc: 2", ("0", "1")),
        ("{% template %}", ("0", "1")),
    ],
)
def test_names_of_yolo_classes(tmp_path: Path, names: str, classes: tuple[str, ...]) -> None:
    data = read_data(lay(tmp_path, {**yolo(), "data.yaml": names}), seed=0, choices=CROPS)
    assert data.classes == classes


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("names: [no, cat]", "names: 0: False is not a class number with its name"),
        ("names: [null, cat]", "names: 0: None is not"),
        ("names: {cat: 0, dog: 1}", "names: 'cat': 0 is not"),
        ("names: [[cat], dog]", "names: 0: ['cat'] is not"),
        ("names: [cat, dog", "no valid YAML"),
        ("names: {0: cat, 0: dog}", "0 is there twice"),
        ("names: " + "[" * 5000, "deep"),
    ],
)
def test_names_that_are_not_names_are_refused(tmp_path: Path, names: str, said: str) -> None:
    text = refused(lay(tmp_path, {**yolo(), "data.yaml": names}), CROPS)
    assert "data.yaml: " in text
    assert said in text


@pytest.mark.parametrize(
    ("kind", "files"),
    [("COCO", coco()), ("LabelMe", labelme()), ("YOLO", yolo(outlined=True)), ("CVAT", cvat())],
)
def test_outlines_become_masks(tmp_path: Path, kind: str, files: Files) -> None:
    root = lay(tmp_path, files)
    assert is_masked(root)
    assert task_for(root) == "segment"
    assert "--task segment" in refused(root)
    data = read_masked_data(root, seed=0)
    assert data.classes == ("background", "cat", "dog")
    mask = data.splits["train"][0]["mask"].numpy()
    assert mask.shape == (HEIGHT, WIDTH)
    left, top, _, bottom = BOXES["cat"]
    assert (mask[top + 1 : bottom - 1, left + 1 : 10] == 1).all()  # what the larger dog does not share
    assert mask[0, 0] == 0
    assert mask[16, 16] == 2
    assert (mask[top + 1 : bottom - 1, 11] == 1).all()  # the smaller one is on top


@pytest.mark.parametrize("files", [voc(), coco(outlined=False), yolo()])
def test_boxes_make_no_masks(tmp_path: Path, files: Files) -> None:
    root = lay(tmp_path, files)
    assert not is_masked(root)
    with pytest.raises(UserError, match=r"have a box and no outline .*--crops"):
        read_masked_data(root, seed=0)


def test_boxes_beside_images_are_not_captions(tmp_path: Path) -> None:
    root = lay(
        tmp_path, {f"{i}.{e}": None if e == "jpg" else "0 0.5 0.5 0.2 0.2\n" for i in range(8) for e in ("jpg", "txt")}
    )
    assert not is_captioned(root)
    with pytest.raises(UserError, match="hold boxes of objects"):
        read_captioned_data(root, seed=0)
    assert "YOLO boxes" in refused(root)


def test_key_points_of_a_pose_are_not_an_outline(tmp_path: Path) -> None:
    """Three points of two numbers after the box: ten numbers, which without `kpt_shape` are an outline of five."""
    numbers = " ".join(map(str, (0.5, 0.5, 0.5, 0.5, *(0.4, 0.4, 0.5, 0.5, 0.6, 0.6))))
    files = photos("train/images") | {f"train/labels/{i}.txt": f"{i % 2} {numbers}" for i in range(8)}
    root = lay(tmp_path, {**files, "data.yaml": "names: [cat, dog]\nkpt_shape: [3, 2]\n"})
    assert not is_masked(root)
    images = read_data(root, seed=0, choices=Choices(crops=True)).splits["train"]
    assert images.paths[0].endswith(f"#{WIDTH // 4},{HEIGHT // 4},{WIDTH * 3 // 4},{HEIGHT * 3 // 4}")


def test_the_data_sets_own_splits(tmp_path: Path) -> None:
    files = dict(yolo())
    for name, content in yolo().items():
        if "/" in name:
            files |= {name.replace("train/", f"{split}/"): content for split in ("valid", "test")}
    data = read_data(lay(tmp_path, files), seed=0, choices=CROPS)
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 16, "val": 16, "test": 16}
    assert all("/valid/" in path for path in data.splits["val"].paths)


def test_images_of_another_size_are_left_out(tmp_path: Path) -> None:
    root = lay(tmp_path, voc())
    file = tmp_path / "Annotations" / "3.xml"
    file.write_text(file.read_text().replace(f"<width>{WIDTH}<", "<width>99<"))
    data = read_data(root, seed=0, choices=CROPS)
    assert [error.reason for error in data.skipped] == [f"annotated as 99 x {HEIGHT}, image {WIDTH} x {HEIGHT}"]
    file.write_text("<annotation><object></annotation>")
    assert "3.xml is not a Pascal VOC annotation" in refused(root, CROPS)


def test_crops_need_boxes(tmp_path: Path) -> None:
    root = lay(tmp_path, photos("cat", "dog"))
    assert "--crops cuts boxes out" in refused(root, CROPS)


def test_run_lengths_of_coco() -> None:
    """The compressed text is what pycocotools writes for the list, in a mask of 5 x 4 (h x w)."""
    mask = np.zeros((5, 4), dtype=bool)
    mask[1:4, 1:3] = True
    counts = [6, 3, 2, 3, 6]
    assert np.array_equal(runs_to_mask({"size": [5, 4], "counts": counts}), mask)
    assert np.array_equal(runs_to_mask({"size": [5, 4], "counts": "63204"}), mask)
