"""Data sets by `torch/NAME`, from files made here in their formats."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from snella.data.readers.labelled import read_data
from snella.errors import UserError


def refusal(data: str) -> str:
    with pytest.raises(UserError) as caught:
        read_data(data, seed=0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pixels(images: Any, index: int) -> np.ndarray:
    return np.asarray(images[index]["image"])


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
