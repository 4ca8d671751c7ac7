"""Masks over images: what was to be found, and what was."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from snella.data.masks.files import RGB
from snella.report.style import GREY, INK, PALE, heading, new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAND = 1_000_000  # pixels that are painted at a time
OPACITY = 0.55  # of a mask over its image
SHOWN = 12  # classes in the legend
LONGEST = 20  # letters of a class name


@dataclass(frozen=True)
class Example:
    """One image with its two masks, (h, w) each: class indices, negative where a pixel does not count."""

    picture: np.ndarray  # (h, w, 3) uint8
    mask: np.ndarray
    predicted: np.ndarray


def painted(picture: Image.Image | np.ndarray, mask: np.ndarray, palette: Sequence[RGB]) -> np.ndarray:
    """Return the picture with each class of the mask in its colour over it, (h, w, 3) uint8.

    Black, which is the background's colour as a rule, and pixels that do not count leave the picture as it is.
    """
    result = np.array(picture, dtype=np.uint8)
    of_class = np.array(palette, dtype=np.float32)
    rows = max(1, BAND // max(1, mask.shape[1]))
    for top in range(0, len(mask), rows):  # in floats a large image is eight times as large
        band, pixels = mask[top : top + rows], result[top : top + rows].astype(np.float32)
        colors = of_class[np.maximum(band, 0)]
        cover = ((band >= 0) & colors.any(axis=-1))[..., None] * OPACITY
        result[top : top + rows] = (pixels * (1 - cover) + colors * cover).round().astype(np.uint8)
    return result


def overlays_figure(
    examples: Sequence[Example],
    classes: Sequence[str],
    palette: Sequence[RGB],
    path: str | os.PathLike[str],
    *,
    title: str = "What was found",
) -> Path:
    """Draw a column for each example, one or more: the image, both masks over it, and the wrong pixels.

    Args:
        classes: the K names; `palette` has their colours.
        path: file to write (its ending says the format); replaced if it is there. It is returned.
    """
    rows = ("image", "mask", "prediction", "wrong")
    side, gap, left, top, bottom = 1.7, 0.06, 0.95, 0.85, 0.45
    width = max(left + len(examples) * (side + gap) + 0.1, 5.6)
    height = top + len(rows) * (side + gap) + bottom
    figure = new_figure(width, height)
    for column, example in enumerate(examples):
        wrong = (example.mask >= 0) & (example.mask != example.predicted)
        shade = np.where(wrong[..., None], (194, 65, 12), (255, 255, 255)).astype(np.uint8)
        pictures = (
            example.picture,
            painted(example.picture, example.mask, palette),
            painted(example.picture, example.predicted, palette),
            shade,
        )
        for row, picture in enumerate(pictures):
            x, y = left + column * (side + gap), height - top - (row + 1) * (side + gap) + gap
            axes = figure.add_axes((x / width, y / height, side / width, side / height))
            axes.imshow(picture, interpolation="nearest" if max(picture.shape) < 64 else "antialiased")
            axes.set_xticks([])
            axes.set_yticks([])
            style_axes(axes)
            if row == len(rows) - 1:
                axes.spines[:].set(visible=True, color=PALE)
            if column == 0:
                axes.set_ylabel(rows[row], fontsize=9, color=GREY, rotation=0, ha="right", va="center")
    _legend(figure, classes, palette, left / width, 0.3 / height)
    counted = sum(int((example.mask >= 0).sum()) for example in examples)
    wrong = sum(int(((e.mask >= 0) & (e.mask != e.predicted)).sum()) for e in examples)
    heading(
        figure,
        title,
        f"{len(examples)} of the images tested; {wrong / max(counted, 1):.1%} of their pixels are wrong (red)",
    )
    return save_figure(figure, path)


def _legend(figure: Figure, classes: Sequence[str], palette: Sequence[RGB], x: float, y: float) -> None:
    from matplotlib.patches import Patch

    shown = [
        Patch(
            facecolor=(color[0] / 255, color[1] / 255, color[2] / 255),
            edgecolor=GREY,
            linewidth=0.4,
            label=name[:LONGEST],
        )
        for name, color in list(zip(classes, palette, strict=True))[:SHOWN]
    ]
    if len(classes) > SHOWN:
        shown.append(Patch(facecolor="none", edgecolor="none", label=f"and {len(classes) - SHOWN} more"))
    figure.legend(
        handles=shown, loc="center left", bbox_to_anchor=(x, y), ncols=4, fontsize=7.5, frameon=False, labelcolor=INK,
        handlelength=1, columnspacing=1.2, borderpad=0,
    )  # fmt: skip
