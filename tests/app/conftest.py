"""Finished runs of the tasks, small enough to train in a second, that the tests of the page share."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import generation_runs, masked_runs, tiny_pipelines
from support.runs import train, write_images

HOSTILE = ("<img src=x onerror=alert(1)>", "${alert(2)}{{constructor}}@children", "plain")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="session")
def images(place: Path) -> Path:
    """Three classes, two of whose names would be markup or a template."""
    folder = write_images(place / "images", classes=3, count=12)
    for i, name in enumerate(HOSTILE):
        (folder / f"c{i}").rename(folder / name)
    return folder


@pytest.fixture(scope="session")
def run(place: Path, images: Path) -> Path:
    assert train(images, place / "run", "--lr", "1e-2", "--epochs", "4") == 0
    return place / "run"


@pytest.fixture(scope="session")
def other(place: Path, images: Path) -> Path:
    assert train(images, place / "other", "--backbone", "test_convnext", "--method", "linear", "--epochs", "1") == 0
    return place / "other"


@pytest.fixture(scope="session")
def segmenter(place: Path) -> Path:
    data = masked_runs.write_pairs(place / "masked")
    assert masked_runs.train(data, place / "segmenter") == 0
    return place / "segmenter"


@pytest.fixture(scope="session")
def generator(place: Path) -> Path:
    unet = tiny_pipelines.write_unet(place / "unet", classes=2)
    data = generation_runs.write_class_folders(place / "classes")
    assert generation_runs.train(data, unet, place / "generator") == 0
    return place / "generator"
