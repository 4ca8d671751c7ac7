from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snella.data.dataset import Images, class_weights
from snella.data.listing import labelled, natural_order
from snella.errors import UserError


def test_examples_hold_image_and_label(tmp_path: Path, picture) -> None:
    images = Images((picture(tmp_path / "a.png", (6, 4)),), (3,))
    assert len(images) == 1
    assert images[0]["label"] == 3
    assert images[0]["image"].size == (6, 4)  # pyright: ignore[reportAttributeAccessIssue]


def test_without_labels_examples_hold_the_image_only(tmp_path: Path, picture) -> None:
    assert set(Images((picture(tmp_path / "a.png"),))[0]) == {"image"}


def test_counts_must_agree() -> None:
    with pytest.raises(ValueError, match="2 paths but 1 labels"):
        Images(("a", "b"), (0,))


def test_numbers_are_ordered_by_value() -> None:
    assert sorted(["c10", "C2", "b", "c1"], key=natural_order) == ["b", "c1", "C2", "c10"]
    classes, entries = labelled(["x", "y", "z"], ["10", "9", "10"])
    assert classes == ("9", "10")
    assert entries == [("x", 1), ("y", 0), ("z", 1)]


@given(st.lists(st.text(max_size=6), unique=True), st.randoms())
def test_the_order_does_not_depend_on_where_names_start(names: list[str], random: Random) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)
    assert sorted(names, key=natural_order) == sorted(shuffled, key=natural_order)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_class_weights_are_balanced_with_mean_one(labels: list[int]) -> None:
    images = Images(tuple("x" * len(labels)), tuple(labels))
    weights = class_weights(images, classes=["a", "b", "c", "d", "e"])
    present, counts = np.unique(labels, return_counts=True)
    reference = len(labels) / (len(present) * counts)
    assert torch.allclose(weights[present], torch.tensor(reference / reference.mean()).float(), rtol=1e-5)
    absent = [k for k in range(5) if k not in present]
    assert torch.equal(weights[absent], torch.ones(len(absent)))


def test_a_class_whose_name_could_not_be_saved_is_named_first() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")  # as the file system gives it
    with pytest.raises(UserError, match=r"name of class .* is not UTF-8; rename it") as caught:
        labelled(["x"], [name])
    assert str(caught.value).isascii()
