"""With small volumes in place of nilearn's; the real ones are read where they are installed."""

from __future__ import annotations

import pickle
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from snella.data.bundled.brain import CLASSES, INSTALL, PALETTE
from snella.data.images import UnreadableImage
from snella.data.masks.files import MaskCode
from snella.data.readers.masked import is_masked, read_masked_data, read_masked_test_data
from snella.errors import UserError

FILES = {kind: f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz" for kind in ("t1", "gm", "wm")}
CODE = MaskCode((0, 1, 2))


@pytest.fixture
def package(tmp_path: Path, monkeypatch) -> Path:
    """Volumes of 6 x 8 x 160 voxels, axes right, front, up; importing the package fails, so reading must not."""
    nibabel = pytest.importorskip("nibabel")
    folder = tmp_path / "nilearn" / "datasets" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "nilearn" / "__init__.py").write_text("raise RuntimeError('imported')")
    shape = (6, 8, 160)
    volumes = {kind: np.zeros(shape, dtype=np.uint8) for kind in FILES}
    volumes["t1"][..., :] = 80
    volumes["t1"][0, 7, :] = 200  # left, front
    volumes["gm"][1:4, :, 5:150] = 200
    volumes["gm"][3, :, 5:150] = 140
    volumes["wm"][3, :, 5:150] = 150
    volumes["wm"][5, 0, 5:150] = 90  # below half
    volumes["gm"][0, 0, 0] = volumes["wm"][0, 0, 0] = 255
    for kind, name in FILES.items():
        nibabel.save(nibabel.Nifti1Image(volumes[kind], np.eye(4)), folder / name)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nilearn", raising=False)
    return folder


def test_slices_front_up(package: Path) -> None:
    data = read_masked_data("brain", seed=0)
    assert (data.classes, data.palette, data.code) == (CLASSES, PALETTE, CODE)
    example = data.splits["train"][0]
    image, mask = np.asarray(example["image"]), example["mask"]
    assert image.shape == (8, 6, 3)
    assert image[0, 0].tolist() == [255] * 3  # the brightest voxel of the volume
    assert set(image.ravel()) == {102, 255}
    assert mask.tolist() == [[0, 1, 1, 2, 0, 0]] * 8
    assert data.pixels["val"] == tuple(len(data.splits["val"]) * 8 * share for share in (3, 2, 1))
    assert pickle.loads(pickle.dumps(data.splits["val"]))[0]["mask"].shape == (8, 6)


def test_blocks_lie_apart(package: Path) -> None:
    data = read_masked_data("brain", seed=0)
    blocks = {split: [int(name[2:]) for name in images.paths] for split, images in data.splits.items()}
    assert {split: len(block) for split, block in blocks.items()} == {"train": 65, "val": 10, "test": 30}
    for block in blocks.values():
        assert block == list(range(block[0], block[-1] + 1))
    ordered = sorted(blocks.values())
    assert all(low[-1] + 5 < high[0] for low, high in pairwise(ordered))
    assert read_masked_data("brain", seed=1).splits["test"].paths == data.splits["test"].paths


def test_slices_without_brain_are_left_out(package: Path) -> None:
    import nibabel

    for kind in ("gm", "wm"):
        path = package / FILES[kind]
        values = np.asarray(nibabel.load(path).dataobj).copy()  # pyright: ignore
        values[..., :30] = 0
        values[0, 0, 0] = 255
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    assert read_masked_data("brain", seed=0).splits["train"].paths[0] == "z-030"


def test_ignored_background_and_other_codes(package: Path) -> None:
    data = read_masked_data("brain", seed=0, ignore_index=0)
    assert (data.classes, data.code) == (CLASSES[1:], MaskCode((1, 2), ignore=(0,)))
    test = read_masked_test_data("brain", classes=CLASSES[1:], code=data.code, palette=data.palette, seed=0)
    assert (list(test.splits), test.pixels["test"]) == (["test"], data.pixels["test"])
    assert test.splits["test"].paths == data.splits["test"].paths
    with pytest.raises(UserError, match="class 'background' is not among the model's 2 classes"):
        read_masked_test_data("brain", classes=("a", "b"), code=MaskCode((0, 1)), palette=PALETTE[:2], seed=0)
    with pytest.raises(UnreadableImage):
        data.splits["test"].read_mask("z-110", MaskCode((0, 1)))


@pytest.mark.parametrize("lacking", ["nibabel", "nilearn"])
def test_a_missing_package_is_one_command_away(monkeypatch, tmp_path: Path, lacking: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, lacking, None)
    assert is_masked("brain")
    with pytest.raises(UserError) as caught:
        read_masked_data("brain", seed=0)
    assert INSTALL in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not (find_spec("nilearn") and find_spec("nibabel")), reason="nilearn or nibabel is not installed")
def test_the_real_brain() -> None:
    data = read_masked_data("brain", seed=0)
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 65, "val": 10, "test": 30}
    example = data.splits["test"][0]
    assert example["image"].size == (197, 233)
    assert example["mask"].shape == (233, 197)
    for split, counts in data.pixels.items():
        assert sum(counts) == len(data.splits[split]) * 197 * 233
        assert min(counts) / sum(counts) > 0.03
    notes = " ".join(data.notes)
    assert "one brain" in notes
    assert "BSD" in notes
    white, grey = (np.asarray(example["image"])[..., 0][np.asarray(example["mask"]) == k].mean() for k in (2, 1))
    assert white > grey + 20  # white matter is the brighter in T1
