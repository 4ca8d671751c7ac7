"""Sliding windows: nothing is missed, overlaps are averaged, and one window is the model itself."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snella.tasks.segmentation.windows import starts, windowed_logits


class Position(nn.Module):
    """Logits that know where in its window a pixel is, so that averages show."""

    def forward(self, images: Tensor) -> Tensor:
        size = images.shape[-1]
        return images[:, :1] + torch.arange(size, dtype=images.dtype) / size


@given(length=st.integers(1, 500), size=st.integers(1, 200))
def test_windows_cover_a_side_and_share_a_third(length, size):
    length = max(length, size)
    found = starts(length, size)
    assert found[0] == 0
    assert found[-1] == length - size
    assert all(0 < b - a <= max(size * 2 // 3, 1) + 1 for a, b in pairwise(found))


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 8), width=st.integers(1, 8), batch=st.integers(1, 5))
def test_an_image_that_fits_gives_what_the_model_gives(height, width, batch):
    model = nn.Conv2d(3, 2, 3, padding=1)
    images = torch.randn(3, 3, height, width)
    padded = nn.functional.pad(images, (0, 8 - width, 0, 8 - height))
    with torch.no_grad():
        found = list(windowed_logits(model, list(images), 8, batch_size=batch))
        torch.testing.assert_close(torch.stack(found), model(padded)[..., :height, :width])


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=4), batch=st.integers(1, 7)
)
def test_each_pixel_is_the_mean_of_the_windows_that_it_is_in(sizes, batch):
    images = [torch.randn(3, *size) for size in sizes]
    for image, found in zip(images, windowed_logits(Position(), images, 8, batch_size=batch), strict=True):
        h, w = image.shape[-2:]
        for row, column in {(0, 0), (h // 2, w // 2), (h - 1, w - 1)}:
            lefts = [left for left in starts(max(w, 8), 8) if left <= column < left + 8]
            expected = image[0, row, column] + sum((column - left) / 8 for left in lefts) / len(lefts)
            torch.testing.assert_close(found[0, row, column], expected)
