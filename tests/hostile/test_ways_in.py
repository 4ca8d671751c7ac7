"""An image is the same picture, and is refused for the same reason, whichever way it comes in."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from snella.config.schema import TrainConfig
from snella.runs.prepare import read_run_data

COUNT, SIZE = 8, (20, 24)  # images, height and width
Files = list[tuple[str, bytes]]  # ending and content of each
Way = Callable[[Path, Files], dict[str, Any]]  # writes them and returns the settings that read them


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def folder(root: Path, files: Files) -> dict[str, Any]:
    for i, (ending, content) in enumerate(files):
        (root / "d" / "xy"[i % 2]).mkdir(parents=True, exist_ok=True)
        (root / "d" / "xy"[i % 2] / f"{i}.{ending}").write_bytes(content)
    return {"data": str(root / "d")}


def manifest(root: Path, files: Files) -> dict[str, Any]:
    for i, (ending, content) in enumerate(files):
        (root / f"{i}.{ending}").write_bytes(content)
    rows = [json.dumps({"path": f"{i}.{ending}", "label": "xy"[i % 2]}) for i, (ending, _) in enumerate(files)]
    (root / "m.jsonl").write_text("\n".join(rows))
    return {"data": str(root / "m.jsonl")}


def hub(root: Path, files: Files) -> dict[str, Any]:
    datasets = pytest.importorskip("datasets")
    (root / "set").mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    columns = {
        "image": [{"bytes": content, "path": f"{i}.{ending}"} for i, (ending, content) in enumerate(files)],
        "label": [i % 2 for i in range(len(files))],
    }
    datasets.Dataset.from_dict(columns, features=features).to_parquet(root / "set" / "train-00000-of-00001.parquet")
    return {"data": f"hfds/{root / 'set'}"}


def shards(root: Path, files: Files) -> dict[str, Any]:
    pytest.importorskip("webdataset")
    (root / "shards").mkdir()
    with tarfile.open(root / "shards" / "train.tar", "w") as shard:
        for i, (ending, content) in enumerate(files):
            for suffix, inside in ((ending, content), ("cls", str(i % 2).encode())):
                member = tarfile.TarInfo(f"{i:04d}.{suffix}")
                member.size = len(inside)
                shard.addfile(member, io.BytesIO(inside))
    return {"data": f"wds/{root / 'shards'}"}


def crops(root: Path, files: Files) -> dict[str, Any]:
    return {**_shapes(root, files), "task": "classify", "crops": True}


def outlines(root: Path, files: Files) -> dict[str, Any]:
    return {**_shapes(root, files), "task": "segment"}


def _shapes(root: Path, files: Files) -> dict[str, Any]:
    """Outlines of LabelMe around all of each image."""
    (root / "d").mkdir()
    height, width = SIZE
    for i, (ending, content) in enumerate(files):
        (root / "d" / f"{i}.{ending}").write_bytes(content)
        points = [[0, 0], [width, 0], [width, height], [0, height]]
        (root / "d" / f"{i}.json").write_text(json.dumps({"shapes": [{"label": "xy"[i % 2], "points": points}]}))
    return {"data": str(root / "d")}


def masked(root: Path, files: Files) -> dict[str, Any]:
    for name in ("images", "masks"):
        (root / "d" / name).mkdir(parents=True)
    for i, (ending, content) in enumerate(files):
        (root / "d" / "images" / f"{i}.{ending}").write_bytes(content)
        Image.fromarray((np.indices(SIZE)[0] % 2).astype(np.uint8)).save(root / "d" / "masks" / f"{i}.png")
    return {"data": str(root / "d"), "task": "segment"}


def captioned(root: Path, files: Files) -> dict[str, Any]:
    (root / "d").mkdir()
    for i, (ending, content) in enumerate(files):
        (root / "d" / f"{i}.{ending}").write_bytes(content)
        (root / "d" / f"{i}.txt").write_text(f"picture {i}")
    return {"data": str(root / "d"), "task": "generate"}


WAYS: dict[str, Way] = {
    way.__name__: way for way in (folder, manifest, hub, shards, crops, outlines, masked, captioned)
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Way:
    if request.param == "hub":
        pytest.importorskip("datasets")
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return WAYS[request.param]


def read(settings: dict[str, Any]) -> Any:
    return read_run_data(TrainConfig.of(**settings), Console(quiet=True))


def shown(data: Any) -> list[np.ndarray]:
    """All images, the darkest first."""
    images = [np.asarray(split[i]["image"]) for split in data.splits.values() for i in range(len(split))]
    return sorted({image.tobytes(): image for image in images}.values(), key=lambda image: int(image.sum()))


# Of hub data sets, shards and boxes 12 bits of 16 were nearly black, whatever --white said.
def test_16_bit_greys_are_scaled_alike(way: Way, tmp_path: Path) -> None:
    levels = [np.random.default_rng(i).integers(400 * i, 400 * i + 900, SIZE).astype(np.uint16) for i in range(COUNT)]
    settings = way(tmp_path, [("png", encoded(Image.fromarray(level), "PNG")) for level in levels])
    for white in (None, 65_535):
        data = read({**settings, "white": white})
        images = shown(data)
        assert len(images) == COUNT
        for image, level in zip(images, levels, strict=True):
            expected = (level.astype(np.int64) * 255 * 2 + (white or 4_095)) // (2 * (white or 4_095))
            assert np.abs(image.astype(int) - expected[..., None]).max() <= 1
        assert any("4095 is taken for white" in note for note in data.notes) == (white is None)


def odd() -> dict[str, tuple[str, bytes, str]]:
    """Return ending, content and the reason of images that no picture can be made of for sure."""
    other = Image.new("RGB", (SIZE[1], SIZE[0]), "red")
    frames: dict[str, Any] = {"save_all": True, "append_images": [Image.new("RGB", (SIZE[1], SIZE[0]), "blue")]}
    return {
        "animated gif": ("gif", encoded(other, "GIF", **frames), "2 frames"),
        "animated webp": ("webp", encoded(other, "WEBP", **frames), "2 frames"),
        "animated png": ("png", encoded(other, "PNG", **frames), "2 frames"),
        "pages": ("tif", encoded(other, "TIFF", **frames), "2 frames"),
        "floats": ("tif", encoded(Image.fromarray(np.ones(SIZE, np.float32)), "TIFF"), "floating-point"),
        "cut short": ("png", encoded(Image.effect_noise((SIZE[1], SIZE[0]), 60), "PNG")[:-60], "truncated"),
    }


# Of shards the first frame stood for an animation.
def test_what_has_no_certain_picture_is_left_out_and_said(way: Way, tmp_path: Path) -> None:
    fine = [("png", encoded(Image.new("RGB", (SIZE[1], SIZE[0]), (20 * i, 9, 9)), "PNG")) for i in range(COUNT)]
    data = read(way(tmp_path, [*fine, *((ending, content) for ending, content, _ in odd().values())]))
    assert len(shown(data)) == COUNT
    reasons = [error.reason for error in data.skipped]
    assert len(reasons) == len(odd())
    for name, (_, _, reason) in odd().items():
        assert any(reason in found for found in reasons), name


def pictures() -> dict[str, tuple[str, bytes, tuple[int, int, int]]]:
    """Return ending, content and the colour that a person sees."""
    size = (SIZE[1], SIZE[0])
    turned = Image.Exif()
    turned[0x0112] = 6
    palette = Image.new("P", size, 1)
    palette.putpalette([0, 0, 0, 200, 30, 10])
    return {
        "CMYK": ("jpg", encoded(Image.new("CMYK", size, (0, 255, 255, 0)), "JPEG", quality=95), (254, 0, 0)),
        "clear": ("png", encoded(Image.new("RGBA", size, (0, 0, 0, 0)), "PNG"), (255, 255, 255)),
        "a clear palette": ("png", encoded(palette, "PNG", transparency=1), (255, 255, 255)),
        "palette": ("gif", encoded(palette, "GIF"), (200, 30, 10)),
        "LA": ("png", encoded(Image.new("LA", size, (100, 255)), "PNG"), (100, 100, 100)),
        "1 bit": ("png", encoded(Image.new("1", size, 1), "PNG"), (255, 255, 255)),
        "I;16B": ("tif", encoded(Image.frombytes("I;16B", size, b"\x64\x64" * 480), "TIFF"), (100, 100, 100)),
        "turned": ("jpg", encoded(Image.new("RGB", SIZE, (0, 90, 0)), "JPEG", quality=95, exif=turned), (0, 90, 0)),
    }


def test_a_person_sees_the_same_picture(way: Way, tmp_path: Path) -> None:
    cases = pictures()
    images = shown(read({**way(tmp_path, [case[:2] for case in cases.values()]), "white": 65_535}))
    for name, (_, _, color) in cases.items():
        near = [image for image in images if np.abs(image.astype(int) - color).max() <= 4]
        assert near, name
        assert near[0].shape == (*SIZE, 3), name
