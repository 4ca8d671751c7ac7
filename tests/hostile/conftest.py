"""Runs that the hostile inputs are tried on, trained once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support import masked_runs
from support.runs import train, write_images

NAMES = ("image", "text", "probability")  # classes that are called like columns


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of classes that are called like columns."""
    place = tmp_path_factory.mktemp("hostile")
    write_images(place / "images")
    for i, name in enumerate(NAMES):
        shutil.move(place / "images" / f"c{i}", place / "images" / name)
    assert train(place / "images", place / "run", "--method", "linear", "--epochs", "1") == 0
    return place / "run"


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmentation of the classes sky, mask and width."""
    place = tmp_path_factory.mktemp("hostile-masks")
    masked_runs.write_pairs(place / "pairs")
    (place / "pairs" / "classes.json").write_text('["sky", "mask", "width"]')
    assert masked_runs.train(place / "pairs", place / "run", "--method", "linear", "--epochs", "1") == 0
    return place / "run"
