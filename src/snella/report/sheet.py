"""A contact sheet: a row of small pictures for each name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from snella.errors import UserError, cut
from snella.files import check_writable, refuse_existing
from snella.report.style import GREY, INK, heading, new_figure, save_figure, style_axes

SIDE, BETWEEN = 0.8, 0.05  # inches: of a picture, and between two
LONGEST = 28  # letters of a name
PIXELS = 256  # of the longer side of a picture: more would not be seen


def check_sheet(path: Path) -> None:
    """Refuse, before anything is read, a file that is there, is not a PNG by its name or cannot be written. Raises
    UserError.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"--sheet {path}: a contact sheet is a PNG; name a file that ends in .png")
    refuse_existing(path)
    check_writable(path.parent)


def contact_sheet(rows: Mapping[str, Sequence[Image.Image]], path: Path, *, title: str, line: str) -> Path:
    """Draw a row of pictures for each name, one or more, with a title and a line below it.

    Args:
        path: file to write (its ending says the format); replaced if it is there.
    """
    names = {name: cut(name, LONGEST) for name in rows}
    left, top = 0.25 + 0.085 * max(map(len, names.values())), 0.75
    width = max(left + max(map(len, rows.values())) * (SIDE + BETWEEN) + 0.1, 4.5)
    height = top + len(rows) * (SIDE + BETWEEN) + 0.1
    figure = new_figure(width, height)
    for row, (name, pictures) in enumerate(rows.items()):
        y = height - top - (row + 1) * (SIDE + BETWEEN)
        figure.text(
            (left - 0.1) / width, (y + SIDE / 2) / height, names[name], ha="right", va="center", fontsize=9, color=INK,
            parse_math=False,
        )  # fmt: skip
        if not pictures:
            figure.text(left / width, (y + SIDE / 2) / height, "no image", va="center", fontsize=8, color=GREY)
        for column, picture in enumerate(pictures):
            small = picture.convert("RGB")
            small.thumbnail((PIXELS, PIXELS))
            x = left + column * (SIDE + BETWEEN)
            axes = figure.add_axes((x / width, y / height, SIDE / width, SIDE / height))
            axes.imshow(small, interpolation="nearest" if max(small.size) < 64 else "antialiased")
            axes.set_xticks([])
            axes.set_yticks([])
            style_axes(axes)
    heading(figure, title, line)
    return save_figure(figure, path)
