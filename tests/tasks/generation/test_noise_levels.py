"""The figure of the loss by noise: each class's line and name, none touching, and a whole file."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from snella.report import style
from snella.tasks.generation import noise_levels
from snella.tasks.generation.noise_levels import NAMED, LevelRow, noise_levels_figure


def rows(*losses: tuple[float, ...], names: tuple[str, ...] = ()) -> list[LevelRow]:
    """All images, then classes."""
    kinds = ("all", *(names or tuple(f"class {i}" for i in range(len(losses) - 1))))
    return [LevelRow(name, 5, values) for name, values in zip(kinds, losses, strict=True)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, before they are written."""
    figures: list[Figure] = []

    def keep(width: float, height: float) -> Figure:
        figures.append(style.new_figure(width, height))
        return figures[-1]

    monkeypatch.setattr(noise_levels, "new_figure", keep)
    return figures


def lines(figure: Figure) -> list[list[float]]:
    found: list[Any] = [line.get_ydata() for line in figure.axes[0].lines]
    return [list(values) for values in found]


def labels(figure: Figure) -> dict[str, float]:
    """Names beside the lines -> where they stand, as a share of the axes' height."""
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    return {text.get_text(): (text.get_position()[1] - low) / (high - low) for text in axes.texts}


def test_all_images_and_each_class_have_a_line_and_a_name(drawn: list[Figure], tmp_path) -> None:
    table = rows((0.3, 0.2, 0.1, 0.4), (0.1, 0.1, 0.1, 0.1), (0.5, 0.4, 0.3, 0.7), names=("cat", "$dog$"))
    path = noise_levels_figure(table, tmp_path / "new" / "levels.png")
    assert [file.name for file in path.parent.iterdir()] == ["levels.png"]
    assert lines(drawn[0]) == [list(row.losses) for row in (*table[1:], table[0])]
    middles: Any = drawn[0].axes[0].lines[0].get_xdata()
    assert list(middles) == [12.5, 37.5, 62.5, 87.5]
    places = labels(drawn[0])
    assert list(places) == ["cat", "all images", "$dog$"]  # from the lowest end to the highest
    assert any("5 held-out images" in text.get_text() for text in drawn[0].texts)


@pytest.mark.parametrize(("classes", "shown"), [(0, 0), (1, 1), (NAMED, NAMED), (NAMED + 1, 0), (200, 0)])
def test_too_many_classes_are_left_out(classes: int, shown: int, drawn: list[Figure], tmp_path) -> None:
    noise_levels_figure(rows(*[(0.1 * i, 0.2) for i in range(classes + 1)]), tmp_path / "a.png")
    assert len(lines(drawn[0])) == len(labels(drawn[0])) == shown + 1


@settings(max_examples=15)
@given(st.lists(st.floats(0, 2), min_size=1, max_size=NAMED + 1))
def test_names_do_not_touch_and_are_in_the_order_of_their_lines(tmp_path_factory, last: list[float]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        figures: list[Figure] = []
        patch.setattr(noise_levels, "new_figure", lambda *size: figures.append(style.new_figure(*size)) or figures[-1])
        patch.setattr(noise_levels, "save_figure", lambda figure, path: path)
        noise_levels_figure(rows(*[(0.5, value) for value in last]), "a.png")
    places = list(labels(figures[0]).values())
    assert len(places) == len(last)
    assert all(high - low >= 1 / 14 - 1e-6 for low, high in pairwise(places))
    assert -1e-6 <= places[0] <= places[-1] <= 1 + 1e-6  # beside the lines, not in the title


def test_nothing_is_cut_where_names_are_long_and_losses_alike(tmp_path) -> None:
    names = tuple(f"{i} of the classes with a very long name" for i in range(NAMED))
    path = noise_levels_figure(rows(*[(0.2, 0.3)] * (NAMED + 1), names=names), tmp_path / "a.png")
    with Image.open(path) as image:
        figure = np.asarray(image.convert("RGB"))
    for edge in (figure[:6], figure[-6:], figure[:, :6], figure[:, -6:]):
        assert (edge == 255).all()
    assert (figure != 255).any()


@pytest.mark.parametrize("losses", [(0.0, 0.0), (1e-9, 2e-9), (1e6, 3e5), (0.5,)])
def test_odd_losses_are_drawn(losses: tuple[float, ...], drawn: list[Figure], tmp_path) -> None:
    assert noise_levels_figure(rows(losses, losses), tmp_path / "a.svg").stat().st_size > 1000
    assert lines(drawn[0]) == [list(losses)] * 2
