"""Grids and figures of generated pictures: each picture where it belongs, and nothing cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from snella.tasks.generation.sample_grids import BETWEEN, before_after_figure, grid, methods_figure
from support.pictures import pixels


def one_colour(color: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, color)


def colors(count: int, red: int) -> list[Image.Image]:
    """Pictures of one colour each, all different."""
    return [one_colour((red, 20 + 9 * i, 7)) for i in range(count)]


def centre(figure: np.ndarray, picture: Image.Image) -> tuple[float, float]:
    """(x, y) of a picture's colour in the figure; fails if it is nowhere, or no square."""
    y, x = np.nonzero((figure == np.array(picture.getpixel((0, 0)))).all(axis=-1))
    assert len(x) > 40**2
    assert len(x) == pytest.approx((np.ptp(x) + 1) * (np.ptp(y) + 1))
    return float(x.mean()), float(y.mean())


@settings(max_examples=20)
@given(count=st.integers(1, 9), columns=st.integers(1, 12), side=st.integers(1, 70))
def test_each_picture_of_a_grid_is_enlarged_by_a_whole_factor_and_kept(count, columns, side):
    random = np.random.default_rng(count)
    drawn = random.integers(0, 255, (count, side, side, 3)).astype(np.uint8)
    found = np.asarray(grid([Image.fromarray(picture) for picture in drawn], columns))
    shown = min(columns, count)
    size = (found.shape[1] + BETWEEN) // shown - BETWEEN
    assert size % side == 0
    assert side >= 64 or 64 <= size <= 128
    for i, picture in enumerate(drawn):
        x, y = i % shown * (size + BETWEEN), i // shown * (size + BETWEEN)
        factor = size // side
        assert (found[y : y + size, x : x + size][::factor, ::factor] == picture).all()
    assert (found[:, size : size + BETWEEN] == 255).all()


def test_a_grid_of_other_sizes_and_kinds():
    found = np.asarray(grid([Image.new("L", (100, 60), 0), Image.new("P", (40, 90), 0)], 2))
    assert found.shape == (90, 100 + BETWEEN + 100, 3)
    assert (found[0, :100] == 255).all()  # above the low one
    assert (found[15:75, :100] == 0).all()
    with pytest.raises(ValueError, match="pictures"):
        grid([], 2)


@pytest.mark.parametrize(("rows", "each"), [(1, 1), (3, 2), (8, 1), (2, 6)])
def test_rows_and_columns_are_in_their_order_and_nothing_is_cut(rows, each, tmp_path):
    before, after, real = sides = [colors(rows * each, red) for red in (200, 100, 0)]
    titles = ["a photograph of one dog that is on a beach in the evening, with words that are cut", "a", "$x$ $", ""]
    path = before_after_figure(before, after, real, tmp_path / "new" / "samples.png", titles=(titles * 2)[:rows])
    figure = pixels(path)
    assert [file.name for file in path.parent.iterdir()] == ["samples.png"]
    for edge in (figure[:8], figure[-8:], figure[:, :8], figure[:, -8:]):
        assert (edge == 255).all()
    places = np.array([[centre(figure, picture) for picture in pictures] for pictures in sides])
    x, y = places.reshape(3, rows, each, 2).transpose(3, 0, 1, 2)
    assert x[0].max() < x[1].min()
    assert x[1].max() < x[2].min()
    assert all(y[:, i].max() < y[:, i + 1].min() for i in range(rows - 1))
    assert np.ptp(y.mean(axis=2), axis=0).max() < 2
    order = np.lexsort((x[0, 0], y[0, 0].round()))
    assert (order == np.arange(each)).all()


def test_columns_may_have_other_numbers_of_pictures_and_long_names(tmp_path):
    columns = {"full fine-tuning of everything": colors(2, 10), "snella": colors(6, 90), "real": colors(10, 200)}
    figure = pixels(methods_figure(columns, tmp_path / "a.png", rows=["one", "two"]))
    x = [[centre(figure, picture)[0] for picture in pictures] for pictures in columns.values()]
    assert max(x[0]) < min(x[1]) <= max(x[1]) < min(x[2])


def test_without_references_there_is_no_column_for_them(tmp_path):
    both = pixels(before_after_figure(colors(1, 9), colors(1, 99), [], tmp_path / "a.png", titles=["x"]))
    three = pixels(before_after_figure(colors(1, 9), colors(1, 99), colors(1, 199), tmp_path / "b.png", titles=["x"]))
    assert both.shape[1] < three.shape[1]


def test_pictures_that_the_rows_cannot_share_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'after' has 3 pictures for 2 rows"):
        before_after_figure(colors(2, 1), colors(3, 2), [], tmp_path / "a.png", titles=["x", "y"])
    with pytest.raises(ValueError, match="rows"):
        methods_figure({"snella": []}, tmp_path / "a.png", rows=[])
