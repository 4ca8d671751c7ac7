"""Splits and labels as timm gives them."""

from __future__ import annotations

import pytest

from snella.data.bundled.timm_entries import indexed_entries, known_splits
from snella.errors import UserError


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
