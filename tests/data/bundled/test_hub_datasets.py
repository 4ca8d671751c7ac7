"""Data sets by `hfds/NAME`, from files made here."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from snella.data.dataset import with_white
from snella.data.readers.labelled import read_data
from snella.errors import UserError


def refusal(data: str) -> str:
    with pytest.raises(UserError) as caught:
        read_data(data, seed=0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pixels(images: Any, index: int) -> np.ndarray:
    return np.asarray(images[index]["image"])


def test_hfds_from_a_local_folder(tmp_path: Path, class_folders, monkeypatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "pets"
    class_folders(root / "train", cat=6, dog=6)
    class_folders(root / "test", cat=2, dog=3)
    data = read_data(f"hfds/{root}", seed=0)
    assert data.classes == ("cat", "dog")
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 10, "val": 2, "test": 5}
    expected = sorted(np.asarray(Image.open(path)).tobytes() for path in (root / "test").rglob("*.png"))
    images = pickle.loads(pickle.dumps(data.splits["test"]))  # as worker processes get it
    assert sorted(pixels(images, i).tobytes() for i in range(5)) == expected
    assert images[0]["label"] == images.labels[0]


def test_hfds_with_other_columns_and_an_unlabelled_split(tmp_path: Path, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine": datasets.ClassLabel(names=["a", "b"]),
            "coarse": datasets.ClassLabel(names=["c"]),
        }
    )
    picture = Image.new("RGB", (4, 4))
    for split, labels in (("train", [0, 1] * 5), ("test", [-1, -1])):
        columns = {"img": [picture] * len(labels), "fine": labels, "coarse": [0] * len(labels)}
        part = datasets.Dataset.from_dict(columns, features=features)
        (tmp_path / "set").mkdir(exist_ok=True)
        part.to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    data = read_data(f"hfds/{tmp_path / 'set'}", seed=0)
    assert data.classes == ("a", "b")
    assert "test has no labels and is left out" in data.notes
    assert "labels are read from column fine (others: coarse)" in data.notes


def test_hfds_of_12_bit_greys_is_scaled_as_folders_are(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for i in range(12):
        path = tmp_path / "set" / "train" / ("a", "b")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.resize(np.array([0, 4095, 100 * i], np.uint16), (8, 9))).save(path)
    data, folder = (
        with_white(read_data(name, seed=0), None) for name in (f"hfds/{tmp_path / 'set'}", str(tmp_path / "set"))
    )
    assert "use 12 of 16 bits" in "\n".join(data.notes)
    shown, expected = (
        sorted(pixels(images, i).tobytes() for images in one.splits.values() for i in range(len(images)))
        for one in (data, folder)
    )
    assert shown == expected
    assert pixels(data.splits["train"], 0)[0, 1, 0] == 255


def test_hfds_without_its_package(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'snella[hfds]'" in refusal("hfds/food101")
