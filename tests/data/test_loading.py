from __future__ import annotations

import os
import random
import signal
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from snella.data.dataset import Images
from snella.data.loading import ImageBatches, seeded
from snella.data.transforms.images import Augmentation, Preprocessing, eval_transform, train_transform
from snella.errors import UserError

P = Preprocessing(16)
AUGMENTED = train_transform(
    P, Augmentation("crop", auto_augment="rand-m5-mstd0.5", color_jitter=0.2, random_erasing=0.5)
)


@pytest.fixture
def images(tmp_path: Path, picture) -> Images:
    paths = tuple(picture(tmp_path / f"{i}.png", (20, 24)) for i in range(11))
    return Images(paths, tuple(range(11)))


def batches(images: Any, transform=AUGMENTED, **options: Any) -> ImageBatches:
    return ImageBatches(images, transform, **{"batch_size": 3, "shuffle": True, "seed": 7, **options})


def same(first: list[dict[str, torch.Tensor]], second: list[dict[str, torch.Tensor]]) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        for a, b in zip(first, second, strict=True)
    )


def test_an_epoch_holds_every_example_once(images: Images) -> None:
    loaded = batches(images)
    epoch = list(loaded.epoch(0))
    assert len(loaded) == len(epoch) == 4
    assert epoch[0]["image"].shape == (3, 3, 16, 16)
    assert epoch[0]["label"].dtype == torch.int64
    labels = torch.cat([batch["label"] for batch in epoch])
    assert sorted(labels.tolist()) == list(range(11))
    assert labels.tolist() != list(range(11))
    assert same(list(loaded), epoch)


def test_drop_last(images: Images) -> None:
    loaded = batches(images, drop_last=True)
    assert len(loaded) == len(list(loaded.epoch(0))) == 3


def test_without_shuffling_the_order_is_the_listing(images: Images) -> None:
    epoch = list(batches(images, eval_transform(P), shuffle=False).epoch(3))
    assert torch.cat([batch["label"] for batch in epoch]).tolist() == list(range(11))
    single = eval_transform(P)(images[4])["image"]
    assert torch.equal(epoch[1]["image"][1], single)


def test_workers_change_nothing(images: Images) -> None:
    alone, helped = batches(images), batches(images, workers=2)
    for epoch in (0, 1):
        assert same(list(alone.epoch(epoch)), list(helped.epoch(epoch)))


def test_augmentations_differ_between_positions_epochs_and_seeds(images: Images) -> None:
    twice = Images((images.paths[0],) * 2, (0, 0))
    crop = train_transform(P, Augmentation("crop"))
    draws = [
        image
        for seed in (0, 1)
        for epoch in (0, 1)
        for image in next(batches(twice, crop, shuffle=False, seed=seed).epoch(epoch))["image"]
    ]
    assert not any(torch.equal(draws[i], draws[j]) for i in range(len(draws)) for j in range(i))


def test_epochs_and_seeds_differ(images: Images) -> None:
    first = list(batches(images).epoch(0))
    assert not same(first, list(batches(images).epoch(1)))
    assert not same(first, list(batches(images, seed=8).epoch(0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_can_be_taken_up_anywhere(images: Images, workers: int) -> None:
    loaded = batches(images, workers=workers)
    whole = list(loaded.epoch(2))
    for skip in range(6):
        assert same(list(loaded.epoch(2, skip=skip)), whole[skip:])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_abandoned_epoch_leaves_no_trace(images: Images, workers: int) -> None:
    loaded = batches(images, workers=workers)
    expected = list(batches(images).epoch(1))
    next(loaded.epoch(0))
    assert same(list(loaded.epoch(1)), expected)


def states() -> list[Any]:
    return [
        random.getstate(),
        np.random.get_state(legacy=False)["state"]["key"].tolist(),
        torch.get_rng_state().tolist(),
    ]


def test_loading_neither_reads_nor_moves_the_global_random_state(images: Images) -> None:
    expected = list(batches(images).epoch(0))
    torch.manual_seed(123)
    random.seed(5)
    before = states()
    loaded = list(batches(images).epoch(0))
    assert states() == before
    assert same(loaded, expected)


def test_seeded_restores_the_state_after_an_error() -> None:
    def draw_and_fail() -> None:
        with seeded((1, 2, 3)):
            random.random()
            np.random.rand()
            torch.rand(1)
            raise KeyError

    before = states()
    with pytest.raises(KeyError):
        draw_and_fail()
    assert states() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_later_is_left_out_and_named(images: Images, workers: int) -> None:
    Path(images.paths[4]).write_bytes(b"")
    loaded = batches(images, shuffle=False, workers=workers)
    with pytest.warns(UserWarning, match=r"4\.png: empty file") as caught:
        first, second = [list(loaded.epoch(0)) for _ in range(2)]
    for epoch in (first, second):
        assert [batch["label"].tolist() for batch in epoch] == [[0, 1, 2], [3, 5], [6, 7, 8], [9, 10]]
    assert len(caught) == 1
    assert [error.path for error in loaded.unreadable] == [images.paths[4]]


def test_a_batch_without_a_readable_image_is_an_error(images: Images) -> None:
    for path in images.paths[:3]:
        Path(path).write_bytes(b"")
    loaded = batches(images, shuffle=False)
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(UserError, match="every image of a batch is unreadable"),
    ):
        next(loaded.epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_examples_is_one_line_from_a_worker_too(workers: int) -> None:
    with pytest.raises(UserError, match=r"^the cache lost a file$"):
        next(batches(Lost(), lambda example: example, workers=workers).epoch(0))


class Lost:
    """Examples whose second one cannot be had."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 1:
            raise UserError("the cache lost a file")
        return {"x": index}


def test_images_without_labels_and_other_examples_load(images: Images) -> None:
    unlabelled = next(batches(Images(images.paths), eval_transform(P)).epoch(0))
    assert set(unlabelled) == {"image"}
    pairs = [{"x": i, "text": str(i)} for i in range(4)]
    batch = next(batches(pairs, lambda example: example, shuffle=False).epoch(0))
    assert batch["x"].tolist() == [0, 1, 2]
    assert batch["text"] == ["0", "1", "2"]


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": -1}])
def test_impossible_sizes_are_refused(images: Images, options: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        batches(images, **options)


def test_an_interrupt_leaves_the_workers_at_work(images: Images, python: str, tmp_path: Path) -> None:
    """Ctrl-C in a terminal goes to every process; the main one may want to finish what it is at."""
    script = tmp_path / "load.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, signal, time
            from snella.data.dataset import Images
            from snella.data.loading import ImageBatches
            from snella.data.transforms.images import Preprocessing, eval_transform
            signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
            print(os.getpid(), flush=True)
            images = Images({images.paths!r}, tuple(range({len(images)})))
            transform = eval_transform(Preprocessing(16))
            batches = ImageBatches(images, transform, batch_size=1, shuffle=True, seed=0, workers=2)
            for batch in batches.epoch(0):
                print("loaded", flush=True)
                time.sleep(0.1)
            """
        )
    )
    process = subprocess.Popen([python, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    session = int(process.stdout.readline())
    for _ in range(2):  # a batch of each worker: one that is only starting is not yet one at work
        assert process.stdout.readline() == "loaded\n"
    os.killpg(session, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out.count("interrupted") == 1
    assert out.count("loaded") == len(images) - 2  # the first ones were read above
    assert err == ""
    assert process.returncode == 0
