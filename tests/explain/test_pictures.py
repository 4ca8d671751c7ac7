"""Heat maps over images: where they lie, against what torchvision hands to the model."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from snella.data.transforms.images import Preprocessing, eval_transform
from snella.explain.pictures import LONGEST, SMALLEST, explainer, overlaid, seen_box
from support.vits import tiny_vit


def seen(picture: Image.Image, preprocessing: Preprocessing) -> float:
    """Return the largest value that the model is given."""
    found = eval_transform(preprocessing)({"image": picture})["image"]
    return float((found * preprocessing.std[0] + preprocessing.mean[0]).max())


@pytest.mark.parametrize("size", [(448, 448), (448, 896), (672, 448)])
def test_a_map_lies_over_what_the_model_sees(size):
    """White outside of the box is not seen, and white at its edge is."""
    crop = Preprocessing(224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="nearest", resize="crop")
    left, top, right, bottom = seen_box(size, crop)
    outside = np.full((size[1], size[0], 3), 255, np.uint8)
    outside[top - 2 : bottom + 2, left - 2 : right + 2] = 0
    assert seen(Image.fromarray(outside), crop) == 0
    for rows, columns in ((slice(top, bottom), left), (slice(top, bottom), right - 1)):
        edge = np.zeros_like(outside)
        edge[rows, max(columns - 2, 0) : columns + 3] = 255
        assert seen(Image.fromarray(edge), crop) == 1
    assert seen_box(size, Preprocessing(224, resize="squash")) == (0, 0, *size)


def test_cold_places_stay_as_they_are_and_hot_ones_glow():
    picture = Image.new("RGB", (400, 200), (10, 120, 60))
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0] = 1
    found = np.asarray(overlaid(picture, heat, Preprocessing(32, resize="squash"))).astype(int)
    assert found.shape == (200, 400, 3)
    assert (found[150:, 300:] == (10, 120, 60)).all()
    assert np.abs(found[5, 10] - (10, 120, 60)).sum() > 150


@pytest.mark.parametrize(
    ("size", "expected"),
    [((8, 4), (SMALLEST, SMALLEST // 2)), ((4000, 1000), (LONGEST, LONGEST // 4)), ((9000, 1), (LONGEST, 1))],
)
def test_an_overlay_has_the_image_s_proportions_at_a_size_that_can_be_seen(size, expected):
    heat = np.ones((3, 3), np.float32)
    assert overlaid(Image.new("RGB", size), heat, Preprocessing(32, resize="squash")).size == expected


@pytest.mark.skipif(find_spec("captum") is None, reason="no captum: pip install 'snella[explain]'")
def test_an_image_is_explained_by_its_class():
    preprocessing = Preprocessing(32, resize="squash")
    explain = explainer(tiny_vit(), preprocessing, eval_transform(preprocessing))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    one, other = (np.asarray(explain(picture, target)) for target in (0, 1))
    assert one.shape == other.shape == (180, 240, 3)
    assert (one != other).any()
