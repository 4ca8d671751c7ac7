"""Whatever stands in a file of a data set, its reader gives a result or a UserError of one line, and soon."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from snella.config.schema import TrainConfig
from snella.data.checks import look_at_file
from snella.data.images import UnreadableImage, image_size, open_image
from snella.errors import UserError
from snella.runs.prepare import read_run_data

Make = Callable[[Path], None]
COUNT, SIZE = 6, (16, 12)  # images, width and height
SECONDS = 10  # of computing that a reading may take; most take a few milliseconds
TEXTS = (
    *("", "\0", "\n", "\r", '"', ",", "\t", "{", "[", "}", "]", ":", "-", "null", "true", "NaN", "-1", "1e999"),
    *("9" * 5_000, "0", "\ufeff", "\ud800", "<", "&a;", "/", "..", "#", " ", "\u0663", "1e9", "[" * 3_000, "<object>"),
)
TOKENS = tuple(text.encode("utf-8", "surrogatepass") for text in (*TEXTS, '"\\ud800"', '"\\u0000"'))
fuzz = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def spoilt(content: bytes) -> st.SearchStrategy[bytes]:
    """The content with up to three pieces replaced."""
    pieces = st.tuples(st.integers(0, len(content)), st.integers(0, 12), st.sampled_from(TOKENS))

    def put(changes: list[tuple[int, int, bytes]]) -> bytes:
        found = content
        for start, length, new in sorted(changes, reverse=True):
            found = found[:start] + new + found[start + length :]
        return found

    return st.lists(pieces, min_size=1, max_size=3).map(put)


def result_or_line(read: Callable[[], object], *allowed: type[Exception]) -> None:
    """Call a reader; what it refuses is one line."""
    began, line = time.process_time(), ""
    try:
        read()
    except UserError as error:
        line = str(error)
    except allowed:
        pass
    assert "\n" not in line
    assert len(line) <= 1_000
    assert time.process_time() - began < SECONDS


def put_images(root: Path, *places: str) -> None:
    """0.png ... in each place."""
    for place in places:
        (root / place).mkdir(parents=True, exist_ok=True)
        for i in range(COUNT):
            pixels = np.random.default_rng([i, len(place)]).integers(0, 256, (SIZE[1], SIZE[0], 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / place / f"{i}.png")


def put(place: str, files: Mapping[str, bytes] | None = None) -> Make:
    """Images in a place, and files beside it."""

    def make(root: Path) -> None:
        put_images(root, place)
        for name, content in (files or {}).items():
            (root / name).write_bytes(content)

    return make


def beside(ending: str, content: bytes) -> Make:
    """Images with a file of the ending beside each."""
    return put(".", {f"{i}.{ending}": content for i in range(COUNT)})


def put_masks(root: Path) -> None:
    put_images(root, "images")
    (root / "masks").mkdir()
    for i in range(COUNT):
        Image.fromarray(np.indices(SIZE[::-1])[0].astype(np.uint8) % 3).save(root / "masks" / f"{i}.png")


def lines(*rows: str) -> bytes:
    return ("\n".join(rows) + "\n").encode()


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


OUTLINE = [1, 1, 9, 1, 9, 9, 1, 9]
COCO = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": SIZE[0], "height": SIZE[1]} for i in range(COUNT)],
    "annotations": [
        {"id": i, "image_id": i, "category_id": i % 2, "bbox": [1, 1, 8, 8], "segmentation": [OUTLINE]}
        for i in range(COUNT)
    ],
    "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
}


def with_runs(counts: Any) -> bytes:
    """COCO with run lengths in the place of outlines."""
    runs = {"size": [12, 16], "counts": counts}
    return as_json({**COCO, "annotations": [{**item, "segmentation": runs} for item in COCO["annotations"]]})


LABELME = {
    "imageWidth": SIZE[0],
    "imageHeight": SIZE[1],
    "shapes": [{"label": "cat", "shape_type": "polygon", "points": [[1, 1], [9, 1], [9, 9]]}],
}
VOC = (
    "<annotation><filename>0.png</filename><size><width>16</width><height>12</height><depth>3</depth></size>"
    "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
)
LISTED = lines(*(f"images/{i}.png {i % 2}" for i in range(COUNT)))
FGVC = as_json({f"{i}.png": i % 2 for i in range(COUNT)})
ROWS = [f'{i}.png,"{"xy"[i % 2]}",{"train" if i < 4 else "val"}' for i in range(COUNT)]
COLORS = [{"name": name, "color": [i, i, i]} for i, name in enumerate(("sky", "sea", "land"))]
BOX, OUTLINED = b"0 0.5 0.5 0.4 0.4\n", b"1 0.1 0.1 0.9 0.1 0.9 0.9\n"
CLASSIFY: dict[str, Any] = {"task": "classify"}
CROPS, SEGMENT = {"task": "classify", "crops": True}, {"task": "segment"}


# the file that is spoilt -> its content, what lies beside it, and the settings that read it
FILES: dict[str, tuple[str, bytes, Make, dict[str, Any]]] = {
    "manifest csv": ("m.csv", lines("path,label,split", *ROWS), put("."), {"data": "m.csv", "task": "classify"}),
    "manifest jsonl": (
        "m.jsonl", lines(*(json.dumps({"path": f"{i}.png", "label": "xy"[i % 2]}) for i in range(COUNT))),
        put("."), {"data": "m.jsonl", "task": "classify"},
    ),
    "table in the folder": (
        "labels.tsv", lines("image\tlabel", *(f"{i}.png\t{'xy'[i % 2]}" for i in range(COUNT))),
        put("images"), CLASSIFY,
    ),
    "list of images": ("train.txt", LISTED, put("images"), CLASSIFY),
    "names of classes": ("classes.txt", lines("0 cat", "1 dog"), put("images", {"train.txt": LISTED}), CLASSIFY),
    "classes.json, names": ("classes.json", as_json(["sky", "sea", "land"]), put_masks, SEGMENT),
    "classes.json, values": ("classes.json", as_json({"0": "sky", "1": "sea", "2": "land"}), put_masks, SEGMENT),
    "classes.json, colours": ("classes.json", as_json(COLORS), put_masks, SEGMENT),
    "captions": (
        "metadata.jsonl", lines(*(json.dumps({"file_name": f"{i}.png", "text": f"cat {i}"}) for i in range(COUNT))),
        put("."), {"task": "generate"},
    ),
    "a caption": ("0.txt", b"a cat", beside("txt", b"a dog"), {"task": "generate"}),
    "COCO boxes": ("_annotations.coco.json", as_json(COCO), put("."), CROPS),
    "COCO outlines": ("_annotations.coco.json", as_json(COCO), put("."), SEGMENT),
    "COCO runs": ("_annotations.coco.json", with_runs([9, 9, 174]), put("."), SEGMENT),
    "COCO runs as text": ("_annotations.coco.json", with_runs("99^5"), put("."), SEGMENT),
    "VOC": ("0.xml", VOC.encode(), beside("xml", VOC.replace("cat", "dog").encode()), CROPS),
    "YOLO": ("0.txt", BOX + b"1 .3 .3 .2 .2\n", beside("txt", BOX), CROPS),
    "YOLO outlines": ("0.txt", OUTLINED.replace(b"1", b"0", 1), beside("txt", OUTLINED), SEGMENT),
    "YOLO names": (
        "data.yaml", b"train: images\nnc: 2\nnames: [cat, dog]\n", beside("txt", BOX + b"1 .3 .3 .2 .2\n"), CROPS,
    ),
    "LabelMe": ("0.json", as_json(LABELME), beside("json", as_json(LABELME)), SEGMENT),
    "FGVC": ("train.json", FGVC, put("images", {"val.json": FGVC, "test.json": FGVC}), CLASSIFY),
}  # fmt: skip

# what was a fault of ours, or took for ever -> the file and its content
FOUND: list[tuple[str, bytes]] = [
    ("VOC", VOC.replace("<xmin>1<", "<xmin>nan<").encode()),
    ("VOC", VOC.replace("<xmax>9<", "<xmax>1e999<").encode()),
    ("VOC", VOC.replace("<name>cat</name>", "").encode()),
    ("COCO boxes", as_json(COCO).replace(b'"width": 16', b'"width": Infinity')),
    ("COCO boxes", as_json(COCO).replace(b'"bbox": [1,', b'"bbox": [NaN,')),
    ("COCO boxes", as_json({**COCO, "images": [{**image, "id": 0, "width": 10**400} for image in COCO["images"]]})),
    ("COCO outlines", as_json(COCO).replace(b"[1, 1, 9, 1, 9, 9, 1, 9]", b"[1, 1, 9, 1, 9, 9, 1]")),
    ("COCO outlines", as_json(COCO).replace(b"[1, 1, 9, 1, 9, 9, 1, 9]", b"[1, 1, 1e30, 1, 9, 9]")),
    ("COCO runs", with_runs([10**12])),
    ("COCO runs", with_runs([9, -9, 192])),
    ("COCO runs", with_runs([9.5, 182.5])),
    ("COCO runs", with_runs(None)),
    ("COCO runs as text", with_runs("9")),
    ("COCO runs as text", with_runs("\u0663")),
    ("LabelMe", as_json(LABELME).replace(b'"imageWidth": 16', b'"imageWidth": Infinity')),
    ("LabelMe", as_json(LABELME).replace(b"[[1, 1]", b"[[NaN, 1]")),
    ("YOLO", b"9" * 5_000 + b" .5 .5 .4 .4\n"),
    ("YOLO names", b'names: {"' + b"9" * 5_000 + b'": cat}'),
    ("names of classes", b"0 cat\n" + b"9" * 5_000 + b" dog\n"),
    ("names of classes", b"\n"),
    ("table in the folder", b'image\tlabel\n0.png\t"' + b"a" * 200_000),
    ("table in the folder", b"image\n0.png\tx\n1.png\ty\n2.png\tx\n"),
    ("classes.json, names", b'["\\ud800", "sea", "land"]'),
    ("classes.json, values", b'{"0": "sky", "1": "sea", "1": "land"}'),
    ("FGVC", b'{"0.png": "\\ud800", "1.png": 1}'),
    ("FGVC", b"[" * 90_000),
]


def reader(name: str, root: Path) -> Callable[[bytes], None]:
    """Return what reads a data set with this content in its file."""
    file, _, make, given = FILES[name]
    make(root)
    config = TrainConfig.of(**{**given, "data": str(root / given["data"]) if "data" in given else str(root)})

    def read(content: bytes) -> None:
        (root / file).write_bytes(content)

        def use() -> None:
            for split in read_run_data(config, Console(quiet=True)).splits.values():
                for i in range(min(2, len(split))):
                    split[i]

        result_or_line(use, UnreadableImage)

    return read


@pytest.mark.parametrize("name", FILES)
def test_a_data_sets_file(name: str, tmp_path: Path) -> None:
    read, good = reader(name, tmp_path), FILES[name][1]
    read(good)

    @fuzz
    @given(spoilt(good))
    def trial(content: bytes) -> None:
        read(content)

    for known, content in FOUND:
        if known == name:
            trial = example(content)(trial)
    trial()


def encoded(form: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(SIZE, 60).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def wide() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full(SIZE[::-1], 4_000, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = {
    "png": encoded("PNG"),
    "16.png": wide(),
    "jpg": encoded("JPEG"),
    "gif": encoded("GIF", "P"),
    "bmp": encoded("BMP"),
    "tif": encoded("TIFF", compression="tiff_lzw"),
    "webp": encoded("WEBP"),
    "tga": encoded("TGA"),
    "ppm": encoded("PPM"),
}


@pytest.mark.parametrize("suffix", IMAGES)
def test_an_images_header(suffix: str, tmp_path: Path) -> None:
    path, good = tmp_path / f"a.{suffix}", IMAGES[suffix]

    @settings(fuzz, max_examples=40)
    @given(st.lists(st.tuples(st.integers(0, min(len(good), 200) - 1), st.integers(0, 255)), min_size=1, max_size=4))
    def trial(changes: list[tuple[int, int]]) -> None:
        content = bytearray(good)
        for place, value in changes:
            content[place] = value
        path.write_bytes(content)
        for read in (image_size, open_image, look_at_file):
            result_or_line(lambda read=read: read(str(path)), UnreadableImage)

    trial()
