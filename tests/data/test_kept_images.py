"""Decoded images that are kept: the same pixels, each file decoded once whichever process asks, within a limit."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snella.data.dataset import Images
from snella.data.images import ImageFiles, UnreadableImage, open_image
from snella.data.kept_images import keep_images
from snella.data.loading import ImageBatches
from snella.data.transforms.images import Augmentation, Preprocessing, train_transform
from snella.errors import UserError

COUNT, BYTES = 6, 6 * 31 * 24 * 3
needs_fork = pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="processes are not forked here")


@pytest.fixture
def images(tmp_path: Path) -> Images:
    random = np.random.default_rng(0)
    for i in range(COUNT):
        picture = Image.fromarray(random.integers(0, 255, (24, 31, 3)).astype(np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if i == 0 else 1  # the first one lies on its side
        picture.save(tmp_path / f"{i}.png", exif=exif)
    return Images(tuple(str(tmp_path / f"{i}.png") for i in range(COUNT)), tuple(range(COUNT)))


def epochs(images: Images, workers: int) -> list[np.ndarray]:
    transform = train_transform(Preprocessing(16), Augmentation("crop"))
    batches = ImageBatches(images, transform, batch_size=2, shuffle=True, seed=0, workers=workers)
    return [batch["image"].numpy() for epoch in range(3) for batch in batches.epoch(epoch)]


@needs_fork
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_and_files_are_read_once(images: Images, workers: int) -> None:
    kept = keep_images({"train": images}, workers=workers, limit=BYTES)["train"]
    first = epochs(images, workers)
    with_kept = epochs(kept, workers)
    assert all(map(np.array_equal, first, with_kept))
    for path in images.paths:
        expected = np.asarray(open_image(path))
        os.remove(path)
        assert np.array_equal(np.asarray(kept.read(path)), expected)  # whoever decoded it, it is here


def test_photographs_that_are_decoded_smaller_are_kept_so(tmp_path: Path) -> None:
    path = str(tmp_path / "a.jpg")
    Image.effect_noise((320, 160), 50).convert("RGB").save(path)
    reduced = Images((path,), (0,), ImageFiles(enough=40))
    kept = keep_images({"train": reduced}, workers=0, limit=80 * 40 * 3)["train"]
    expected = np.asarray(kept.read(path))
    os.remove(path)
    assert np.array_equal(np.asarray(kept.read(path)), expected)
    assert expected.shape == (40, 80, 3)


def test_what_cannot_be_read_says_so_every_time(images: Images, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"no image")
    kept = keep_images({"train": images}, workers=0, limit=BYTES)["train"]
    for _ in range(2):
        with pytest.raises(UnreadableImage, match=r"1\.png"):
            kept[1]
    changed = Image.new("RGB", (5, 4), "red")
    changed.save(tmp_path / "2.png")  # another size than when it was measured
    assert kept[2]["image"].size == (5, 4)


def test_images_that_do_not_fit_are_not_kept(images: Images) -> None:
    packaged = Images(("a",), (0,), read=lambda name: Image.new("RGB", (2, 2)))
    splits = {"train": images, "val": packaged, "other": [1, 2]}
    kept = keep_images(splits, workers=0, limit=BYTES)
    assert kept["train"] is not images
    assert kept["val"] is packaged
    assert kept["other"] == [1, 2]
    assert keep_images(splits, workers=0, limit=BYTES - 1) == splits
    with pytest.raises(UserError, match=r"--cache-images on: the images take more than the 0\.0 GB that are free"):
        keep_images(splits, workers=0, limit=BYTES - 1, must=True)
