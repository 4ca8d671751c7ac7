"""The denoising loss by how much noise there was."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from snella.console import shown
from snella.report.style import BLUE, INK, heading, new_figure, save_figure, style_axes
from snella.report.tables import new_table

LEVELS = 4  # parts of the noise range; an evaluation looks at each image once in each
NAMED = 8  # classes up to which each has a line and a name


@dataclass(frozen=True)
class LevelRow:
    """Held-out images of a class (or all) in a part of the noise range."""

    name: str
    images: int
    losses: tuple[float, ...]  # for each of LEVELS, from least noise to most


def noise_levels_figure(rows: Sequence[LevelRow], path: str | os.PathLike[str]) -> Path:
    """Draw the loss over the parts of the noise range: of all images in bold, of each of up to 8 classes beside it.

    Args:
        rows: all images first, then the classes.
        path: file to write (its ending says the format); replaced if it is there.

    Returns:
        The path.
    """
    every, classes = rows[0], rows[1:]
    parts = len(every.losses)
    middles = [100 * (i + 0.5) / parts for i in range(parts)]
    width, height = 6.4, 3.6
    figure = new_figure(width, height)
    axes = figure.add_axes((0.7 / width, 0.6 / height, 3.6 / width, 2.0 / height))
    ends = []
    for row in classes if len(classes) <= NAMED else ():
        axes.plot(middles, row.losses, color=BLUE, linewidth=1.0, alpha=0.55, marker="o", markersize=2.5)
        ends.append((row.losses[-1], row.name, BLUE))
    axes.plot(middles, every.losses, color=INK, linewidth=1.8, marker="o", markersize=3.5)
    ends.append((every.losses[-1], "all images", INK))
    axes.set(xlim=(0, 100), ylim=(0, None))
    axes.set_xlabel("noise: place in the range, %", fontsize=8.5)
    style_axes(axes)
    low, high = axes.get_ylim()
    ends.sort()
    for place, (_, name, color) in zip(_apart([end[0] for end in ends], high, (high - low) / 14), ends, strict=True):
        axes.text(103, place, name[:24], color=color, fontsize=8, va="center", clip_on=False, parse_math=False)
    heading(figure, "How well noise is taken out", f"squared error of {every.images:,} held-out images, by noise")
    return save_figure(figure, path)


def _apart(places: Sequence[float], top: float, least: float) -> list[float]:
    """Move rising places until two are `least` apart and none is above the top: names must not touch."""
    apart: list[float] = []
    for place in places:
        apart.append(max(place, apart[-1] + least) if apart else place)
    for i in reversed(range(len(apart))):
        apart[i] = min(apart[i], top if i + 1 == len(apart) else apart[i + 1] - least)
    return apart


def noise_level_table(rows: Sequence[LevelRow]) -> Table:
    """Make the table of the denoising loss of held-out images, by part of the noise range."""
    parts = len(rows[0].losses)
    shares = [f"{100 * i // parts}–{100 * (i + 1) // parts} %" for i in range(parts)]
    table = new_table("denoising loss by noise", left=("images",), right=("count", *shares, "all"))
    for row in rows:
        losses = (*row.losses, sum(row.losses) / parts)
        table.add_row(shown(row.name), f"{row.images:,}", *(f"{loss:.4f}" for loss in losses))
    return table
