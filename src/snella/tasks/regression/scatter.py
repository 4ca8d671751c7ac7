"""How each quantity fared, and what was predicted, as tables and as a picture of predicted against true values."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from snella.console import shown
from snella.errors import cut
from snella.report.style import BLUE, GREY, INK, PALE, heading, new_figure, save_figure, style_axes
from snella.report.tables import NOTHING, new_table

DRAWN = 6  # quantities of a figure, and
A_ROW = 3  # of them side by side
LONGEST = 36  # letters of a name in a figure


def targets_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Make the table of how each quantity fared, in its units; – where a value is not defined."""
    levels = any(row["mae_levels"] is not None for row in rows)
    names = ("mae", "rmse", "r2", *(("kappa", "mae_levels") if levels else ()))
    heads = {"mae": "MAE", "rmse": "RMSE", "r2": "R2", "kappa": "kappa", "mae_levels": "MAE in levels"}
    table = new_table("by target", left=("target",), right=("images", *(heads[name] for name in names)))
    for row in rows:
        cells = (NOTHING if row[name] is None else f"{row[name]:.4g}" for name in names)
        table.add_row(shown(row["name"]), f"{row['count']:,}", *cells)
    return table


def values_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Table:
    """Make the table of the predicted values: {"image": path, "values": {name: value}}."""
    table = new_table(None, left=("image",), right=())
    for name in names:
        table.add_column(shown(name), justify="right")
    for row in rows:
        table.add_row(shown(row["image"]), *(f"{row['values'][name]:.4g}" for name in names))
    return table


def scatter_figure(predicted: Tensor, true: Tensor, names: Sequence[str], path: str | os.PathLike[str]) -> Path:
    """Draw predicted against true values (n, K), a square for each quantity, up to 6; on the line they are equal."""
    count = min(len(names), DRAWN)
    columns = min(count, A_ROW)
    rows = math.ceil(count / columns)
    side, left, top, between = 2.6, 0.75, 1.1, 0.85
    width, height = max(left + columns * (side + between), 5.0), top + rows * (side + between)
    figure = new_figure(width, height)
    for k in range(count):
        x, y = left + k % columns * (side + between), height - top - side - k // columns * (side + between)
        axes = figure.add_axes((x / width, y / height, side / width, side / height))
        pair = true[:, k].numpy(), predicted[:, k].numpy()
        low, high = min(part.min() for part in pair), max(part.max() for part in pair)
        room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        axes.plot([low - room, high + room], [low - room, high + room], color=PALE, linewidth=1)
        axes.plot(*pair, "o", markersize=3, alpha=0.5, color=BLUE, markeredgewidth=0)
        axes.set_xlim(low - room, high + room)
        axes.set_ylim(low - room, high + room)
        axes.set_title(cut(names[k], LONGEST), loc="left", fontsize=9.5, weight="bold", color=INK, parse_math=False)
        axes.set_xlabel("true", fontsize=8, color=GREY)
        axes.set_ylabel("predicted", fontsize=8, color=GREY)
        style_axes(axes)
    more = f"; the first {DRAWN} of {len(names)}" if len(names) > DRAWN else ""
    heading(figure, "Predicted against true values", f"{len(true):,} images; on the line both are equal{more}")
    return save_figure(figure, path)
