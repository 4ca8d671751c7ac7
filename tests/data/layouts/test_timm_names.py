"""Data sets by timm's names, from files made here in each format."""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from snella.data.layouts.timm_entries import indexed_entries, known_splits
from snella.data.readers.labelled import read_data
from snella.errors import UserError


def refusal(data: str) -> str:
    with pytest.raises(UserError) as caught:
        read_data(data, seed=0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pixels(images: Any, index: int) -> np.ndarray:
    return np.asarray(images[index]["image"])


def test_known_splits() -> None:
    assert known_splits(["train", "validation", "test"]) == (
        {"train": "train", "val": "validation", "test": "test"},
        [],
    )
    assert known_splits(["train", "val", "validation", "extra"]) == (
        {"train": "train", "val": "val"},
        ["validation", "extra"],
    )
    assert known_splits(["everything"]) == ({"all": "everything"}, [])


def test_labels_are_checked_against_the_class_names() -> None:
    assert indexed_entries("x", {"train": [1, 0]}, ["a", "b"]) == (
        ("a", "b"),
        {"train": [("train#0", 1), ("train#1", 0)]},
    )
    assert indexed_entries("x", {"train": [10, 9]}, None)[0] == ("9", "10")
    with pytest.raises(UserError, match=r"x: label 2 of image 1 of train is out of range \(0 to 1\)"):
        indexed_entries("x", {"train": [0, 2]}, ["a", "b"])
    with pytest.raises(UserError, match=r"label -1 .* \(0 or more\)"):
        indexed_entries("x", {"train": [-1, 2]}, None)


# --- torch/ ---


def test_torch_image_folder(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path / "train", cat=6, dog=6)
    class_folders(tmp_path / "validation", cat=2, dog=2)
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "validation" / "cat" / "0.png")
    data = read_data(f"torch/image_folder:{tmp_path}", seed=0)
    assert data.classes == ("cat", "dog")
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 10, "val": 4, "test": 2}
    assert data.splits["val"].paths[0] == str(tmp_path / "validation" / "cat" / "0.png")
    assert pixels(data.splits["val"], 0)[..., 0].ravel().tolist() == np.round(ramp / 257).ravel().tolist()


def test_torch_image_folder_without_splits(tmp_path: Path, class_folders) -> None:
    class_folders(tmp_path, cat=6, dog=6)
    data = read_data(f"torch/folder:{tmp_path}", seed=0)
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 8, "val": 2, "test": 2}


def write_idx(path: Path, values: np.ndarray) -> None:
    """The MNIST file format: a magic number with type and rank, the shape, the bytes."""
    header = struct.pack(f">I{values.ndim}I", 0x0800 + values.ndim, *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def test_torch_mnist_in_memory(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (60, 28, 28))
    for part, count in (("train", 40), ("t10k", 20)):
        write_idx(raw / f"{part}-images-idx3-ubyte", images[:count])
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    data = read_data(f"torch/mnist:{tmp_path}", seed=0)
    assert len(data.classes) == 10
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 30, "val": 10, "test": 20}
    assert data.splits["test"].labels[:3] == (0, 1, 2)
    assert np.array_equal(pixels(data.splits["test"], 3)[..., 0], images[3])


def test_torch_faults(tmp_path: Path) -> None:
    assert "torch/cifar100" in refusal("torch/cifar1000")
    text = refusal(f"torch/cifar10:{tmp_path}")
    assert f"torchvision.datasets.CIFAR10('{tmp_path}', download=True)" in text
    assert "does not exist" in refusal(f"torch/image_folder:{tmp_path / 'none'}")
    assert "torch/imagenet:FOLDER" in refusal(f"torch/imagenet:{tmp_path}")
    assert "names no data set" in refusal("torch/")


# --- hfds/ ---


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


def test_hfds_without_its_package(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'snella[hfds]'" in refusal("hfds/food101")


# --- wds/ ---


def write_shard(path: Path, samples: list[tuple[bytes, str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for i, (image, label) in enumerate(samples):
            for suffix, content in (("jpg", image), ("cls", label.encode())):
                member = tarfile.TarInfo(f"{i:04d}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


def encoded(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def test_wds_shards_with_splits_in_their_names(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    folder = tmp_path / "shards"
    write_shard(folder / "x-train-0000.tar", [(encoded(i), str(i % 2)) for i in range(6)])
    write_shard(folder / "x-train-0001.tar", [(encoded(6 + i), str(i % 2)) for i in range(6)])
    write_shard(folder / "x-val-0000.tar", [(encoded(50), "10"), (b"broken", "1"), (encoded(51), "1")])
    with pytest.raises(UserError, match="class '10' has no readable image in train"):
        read_data(f"wds/{folder}", seed=0)
    write_shard(folder / "x-val-0000.tar", [(encoded(50), "0"), (b"broken", "1"), (encoded(51), "1")])
    data = read_data(f"wds/{folder}", seed=0)
    assert data.classes == ("0", "1")
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 10, "val": 2, "test": 2}
    assert [pixels(data.splits["val"], i)[0, 0, 0] for i in range(2)] == [50, 51]
    assert data.splits["val"].labels == (0, 1)
    assert len(data.skipped) == 1
    assert "cannot identify image" in data.skipped[0].reason
    assert "held in memory: 14 images" in data.notes[0]


def test_wds_by_its_info_file(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    folder = tmp_path / "shards"
    write_shard(folder / "a.tar", [(encoded(i), str(i % 2)) for i in range(12)])
    write_shard(folder / "b.tar", [(encoded(90), "1")])
    splits = {
        ours: {"name": ours, "num_samples": count, "filenames": [file], "shard_lengths": [count]}
        for ours, file, count in (("train", "a.tar", 12), ("validation", "b.tar", 1))
    }
    (folder / "_info.json").write_text(json.dumps({"splits": splits}))
    data = read_data(f"wds/{folder}", seed=0)
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 10, "val": 1, "test": 2}
    assert pixels(data.splits["val"], 0)[0, 0, 0] == 90


def test_wds_faults(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("webdataset")
    (tmp_path / "empty").mkdir()
    assert "holds no .tar shard" in refusal(f"wds/{tmp_path / 'empty'}")
    assert "does not exist" in refusal(f"wds/{tmp_path / 'none'}")
    write_shard(tmp_path / "bad" / "a.tar", [(b"broken", "0")])
    assert "no readable sample" in refusal(f"wds/{tmp_path / 'bad'}")
    monkeypatch.setitem(sys.modules, "webdataset", None)
    assert "pip install 'snella[wds]'" in refusal(f"wds/{tmp_path / 'bad'}")
