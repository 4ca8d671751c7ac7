from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snella.data.dataset import Images, class_weights


def test_examples_hold_image_and_label(tmp_path: Path, picture) -> None:
    images = Images((picture(tmp_path / "a.png", (6, 4)),), (3,))
    assert len(images) == 1
    assert images[0]["label"] == 3
    assert images[0]["image"].size == (6, 4)


def test_without_labels_examples_hold_the_image_only(tmp_path: Path, picture) -> None:
    assert set(Images((picture(tmp_path / "a.png"),))[0]) == {"image"}


def test_counts_must_agree() -> None:
    with pytest.raises(ValueError, match="2 paths but 1 labels"):
        Images(("a", "b"), (0,))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_class_weights_are_balanced_with_mean_one(labels: list[int]) -> None:
    images = Images(tuple("x" * len(labels)), tuple(labels))
    weights = class_weights(images, classes=["a", "b", "c", "d", "e"])
    present, counts = np.unique(labels, return_counts=True)
    reference = len(labels) / (len(present) * counts)
    assert torch.allclose(weights[present], torch.tensor(reference / reference.mean()).float(), rtol=1e-5)
    absent = [k for k in range(5) if k not in present]
    assert torch.equal(weights[absent], torch.ones(len(absent)))
