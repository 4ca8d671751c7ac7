"""What the figures share: colours, type sizes, and a whole file or none.

matplotlib is used by its objects alone, so no global state (backend, current figure, style) is touched, and is
imported where it is needed, since it is slow to import.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from snella.files import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

INK, GREY, PALE = "#1f2328", "#656d76", "#d0d7de"
BLUE, ORANGE = "#0b5fa5", "#c2410c"  # also told apart without colour vision
DPI = 160  # points an inch: sharp at twice the width that a README shows


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, sides in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def shares_map() -> ListedColormap:
    """Return the colours of shares from 0 (cream) to 1 (deep purple): the more, the more ink.

    They are a part of magma, and so perceptually uniform; its black end would swallow the rest of the picture.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["magma"](np.linspace(0.985, 0.17, 256)))


def heading(figure: Figure, title: str, *lines: str) -> None:
    """Write a title and small lines below it, in the top left corner."""
    width, height = figure.get_size_inches()
    figure.text(
        0.12 / width, 1 - 0.12 / height, title, va="top", fontsize=13, weight="bold", color=INK, parse_math=False
    )
    for i, line in enumerate(lines):
        figure.text(
            0.12 / width, 1 - (0.42 + 0.18 * i) / height, line, va="top", fontsize=8.5, color=GREY, parse_math=False
        )


def style_axes(axes: Axes) -> None:
    """Give axes small grey tick labels and no frame."""
    axes.tick_params(length=0, labelsize=7.5, labelcolor=GREY, pad=3)
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_hatching(axes: Axes, left: float, bottom: float, width: float, height: float) -> None:
    """Hatch a rectangle, in data coordinates and behind everything else, which says: no value here."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((left, bottom), width, height, fill=False, edgecolor=PALE, hatch="/////", lw=0, zorder=0))


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write the figure to a file, in the format that its ending says."""
    path = Path(path)
    with writing(path) as partial:
        figure.savefig(partial, format=path.suffix.removeprefix("."), dpi=DPI, facecolor="white")
    return path
