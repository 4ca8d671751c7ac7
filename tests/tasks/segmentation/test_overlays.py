"""Masks painted over images, and the figure of an evaluation."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from snella.tasks.segmentation.overlays import Example, overlays_figure, painted

PALETTE = ((0, 0, 0), (255, 0, 0), (0, 0, 255))


def test_black_and_uncounted_pixels_stay_as_they_are_and_others_take_the_colour():
    picture = np.full((1, 3, 3), 100, dtype=np.uint8)
    found = painted(picture, np.array([[0, 1, -1]]), PALETTE)
    assert (found[0, [0, 2]] == 100).all()
    assert found[0, 1, 0] > 150 > 100 > found[0, 1, 2]


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("classes", [3, 40])
def test_the_figure_is_an_image_whatever_the_number_of_classes(count, classes, tmp_path):
    random = np.random.default_rng(0)
    examples = [
        Example(
            random.integers(0, 255, (30 + i, 20, 3)).astype(np.uint8),
            random.integers(-1, classes, (30 + i, 20)),
            random.integers(0, classes, (30 + i, 20)),
        )
        for i in range(count)
    ]
    palette = [(i, 5, 250 - i) for i in range(classes)]
    path = overlays_figure(examples, [f"class {i}" for i in range(classes)], palette, tmp_path / "overlays.png")
    with Image.open(path) as figure:
        assert figure.width > 500
