"""Generated pictures beside real ones: as a plain grid, and as a figure with a row for each prompt or class."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from snella.report.style import GREY, INK, new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALL, SEEN = 64, 96  # pixels: a picture below the first is enlarged to about the second
BETWEEN = 2  # pixels of white between the pictures of a grid
ACROSS = 4  # pictures side by side in a cell: all up to so many, and no more in two lines

MARGIN, HEAD = 0.1, 0.3  # inches: round the figure, and of the headings
GAP, COLUMN_GAP, ROW_GAP = 0.03, 0.14, 0.12  # inches: between pictures, columns, rows
LETTERS, LINES = 22, 4  # of a title
HEADS: dict[str, Any] = {"fontsize": 10, "weight": "bold", "color": INK, "parse_math": False}
LABELS: dict[str, Any] = {"fontsize": 9, "color": GREY, "parse_math": False, "linespacing": 1.25}


def grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Put pictures into rows of `columns`, each in the middle of a field as large as the largest of them.

    Pictures below 64 pixels are enlarged by a whole factor, the same for all, so that single pixels show.

    Raises:
        ValueError: no pictures, or no columns.
    """
    if not pictures or columns < 1:
        raise ValueError(f"a grid needs pictures and columns; got {len(pictures)} and {columns}")
    factor = _factor(max(max(picture.size) for picture in pictures))
    pictures = [_enlarge(picture, factor) for picture in pictures]
    width, height = (max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    whole = Image.new(
        "RGB", (columns * (width + BETWEEN) - BETWEEN, rows * (height + BETWEEN) - BETWEEN), (255, 255, 255)
    )
    for i, picture in enumerate(pictures):
        x, y = i % columns * (width + BETWEEN), i // columns * (height + BETWEEN)
        whole.paste(picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))
    return whole


def before_after_figure(
    before: Sequence[Image.Image],
    after: Sequence[Image.Image],
    references: Sequence[Image.Image],
    path: str | os.PathLike[str],
    *,
    titles: Sequence[str],
) -> Path:
    """Draw what a model gives before and after tuning, and real pictures, with a row for each prompt or class.

    Args:
        before, after, references: pictures, those of the first row first, as many for each row; references may be
            none.
        path: file to write (its ending says the format); replaced if it is there.
        titles: the rows' names.

    Returns:
        The path.

    Raises:
        ValueError: as `methods_figure`.
    """
    columns = {"before": before, "after": after}
    if references:
        columns["real"] = references
    return methods_figure(columns, path, rows=titles)


def methods_figure(
    columns: Mapping[str, Sequence[Image.Image]], path: str | os.PathLike[str], *, rows: Sequence[str]
) -> Path:
    """Draw a group of pictures for each row and column.

    Args:
        columns: heading, such as a method's name or "real" -> pictures, those of the first row first, as many for
            each row.
        path: file to write (its ending says the format); replaced if it is there.
        rows: names of prompts or classes.

    Returns:
        The path.

    Raises:
        ValueError: no rows or columns, or a column that the rows do not share equally.
    """
    if not rows or not columns:
        raise ValueError(f"a figure needs rows and columns; got {len(rows)} and {len(columns)}")
    for name, pictures in columns.items():
        if not pictures or len(pictures) % len(rows):
            raise ValueError(f"{name!r} has {len(pictures)} pictures for {len(rows)} rows; give as many for each")
    each = {name: len(pictures) // len(rows) for name, pictures in columns.items()}
    across = {name: _across(count) for name, count in each.items()}
    lines = max(math.ceil(count / across[name]) for name, count in each.items())
    side = min(max(9 / sum(across.values()), 0.55), 1.3)  # inches

    titles = [_wrap(row) for row in rows]
    left = MARGIN + max(_width(title, LABELS) for title in titles) + 0.12
    high = max(lines * (side + GAP) - GAP, max(title.count("\n") + 1 for title in titles) * 0.17)
    wide = {name: max(across[name] * (side + GAP) - GAP, _width(name, HEADS)) for name in columns}

    width = left + sum(wide.values()) + COLUMN_GAP * (len(columns) - 1) + MARGIN
    height = MARGIN + HEAD + len(rows) * (high + ROW_GAP) - ROW_GAP + MARGIN
    figure = new_figure(width, height)
    tops = [height - MARGIN - HEAD - row * (high + ROW_GAP) for row in range(len(rows))]
    for title, top in zip(titles, tops, strict=True):
        figure.text((left - 0.12) / width, (top - high / 2) / height, title, ha="right", va="center", **LABELS)
    x = left
    for name, pictures in columns.items():
        middle = x + wide[name] / 2
        figure.text(middle / width, 1 - (MARGIN + HEAD / 2) / height, name, ha="center", va="center", **HEADS)
        start = x + (wide[name] - across[name] * (side + GAP) + GAP) / 2
        for i, group in enumerate(_groups(pictures, each[name])):
            _draw_group(figure, group, across[name], side, left=start, top=tops[i], high=high)
        x += wide[name] + COLUMN_GAP
    return save_figure(figure, path)


def _groups(pictures: Sequence[Image.Image], size: int) -> Iterator[Sequence[Image.Image]]:
    """Yield the pictures of each row."""
    for first in range(0, len(pictures), size):
        yield pictures[first : first + size]


def _draw_group(
    figure: Figure, pictures: Sequence[Image.Image], across: int, side: float, *, left: float, top: float, high: float
) -> None:
    """Draw the pictures of one row and column in lines of `across`, in the middle of `high`; lengths in inches."""
    width, height = figure.get_size_inches()
    above = (high - math.ceil(len(pictures) / across) * (side + GAP) + GAP) / 2
    for i, picture in enumerate(pictures):
        line, column = divmod(i, across)
        x, y = left + column * (side + GAP), top - (above + line * (side + GAP)) - side
        _show(figure, picture, (x / width, y / height, side / width, side / height))


def _show(figure: Figure, picture: Image.Image, box: tuple[float, float, float, float]) -> None:
    axes = figure.add_axes(box)
    axes.imshow(picture.convert("RGB"), interpolation="nearest" if max(picture.size) < SMALL else "antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    style_axes(axes)


def _across(count: int) -> int:
    """Return how many pictures stand side by side: all up to four, else enough for two lines or nearly a square."""
    return count if count <= ACROSS else max(min(math.ceil(count / 2), ACROSS), math.ceil(math.sqrt(count)))


def _wrap(title: str) -> str:
    return "\n".join(textwrap.wrap(title, LETTERS, max_lines=LINES, placeholder=" …"))


def _width(text: str, style: Mapping[str, Any]) -> float:
    """Return the width of a text when drawn, inches."""
    figure = new_figure(1, 1)
    return figure.text(0, 0, text, **style).get_window_extent().width / figure.dpi


def _factor(side: int) -> int:
    """Return by how much pictures of that side are enlarged."""
    return max(round(SEEN / side), 1) if side < SMALL else 1


def _enlarge(picture: Image.Image, factor: int) -> Image.Image:
    size = (picture.width * factor, picture.height * factor)
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
