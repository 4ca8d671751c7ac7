"""The picture of where the budget went: layers x time, and where it ended."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from snella.report.matrices import places
from snella.report.style import (
    GREY,
    INK,
    PALE,
    draw_hatching,
    heading,
    new_figure,
    save_figure,
    shares_map,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

COLUMNS = 400  # of a heat map at most; more would be finer than the picture's points


@dataclass(frozen=True)
class Shares:
    """Kept shares, 0 to 1, by kind of matrix, block and time."""

    steps: np.ndarray  # (T,) optimiser steps after which budgets changed
    blocks: tuple[str, ...]  # n labels
    kinds: dict[str, np.ndarray]  # (n, T) each; NaN: no such matrix in the block, or no record of it
    overall: np.ndarray  # (T,) of all matrices together
    entries: int  # of all matrices together

    @property
    def has_gaps(self) -> bool:
        """Whether some matrix has no value at some time."""
        return any(np.isnan(share).any() for share in self.kinds.values())


def kept_shares(records: Sequence[Mapping[str, Any]]) -> Shares:
    """Arrange rows of allocation.jsonl; of two rows for one step (after a resume) the later one holds.

    Raises:
        ValueError: there is no record.
    """
    by_step = {record["step"]: record for record in records}
    if not by_step:
        raise ValueError("no record of an allocation: only methods that allocate a budget write them")
    steps = sorted(by_step)
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), COLUMNS)).round().astype(int))
    rows = [by_step[steps[i]] for i in chosen]
    place = places(list(dict.fromkeys(name for row in rows for name in row["size"])))
    blocks = list(dict.fromkeys(block for block, _ in place.values()))
    kinds = {kind: np.full((len(blocks), len(rows)), np.nan) for _, kind in place.values()}
    for t, row in enumerate(rows):
        for name, kept in row["kept"].items():
            block, kind = place[name]
            kinds[kind][blocks.index(block), t] = kept / row["size"][name]
    return Shares(
        steps=np.array([row["step"] for row in rows]),
        blocks=tuple(blocks),
        kinds=kinds,
        overall=np.array([sum(row["kept"].values()) / sum(row["size"][name] for name in row["kept"]) for row in rows]),
        entries=sum(rows[-1]["size"].values()),
    )


def allocation_figure(records: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Draw which share of each weight matrix its budget kept, over training and at the end.

    One panel per kind of matrix (q, k, v, proj, ...): a heat map, blocks x steps, and a bar per block for the last
    budget, with a dashed line for all matrices together. Hatched: no such matrix in the block, or no record of it.

    Args:
        records: rows of allocation.jsonl: {"step", "kept": {matrix: entries}, "size": {matrix: entries}}.
        path: file to write (its ending says the format); replaced if it is there.

    Returns:
        The path.

    Raises:
        ValueError: there is no record.
    """
    shares = kept_shares(records)
    count = len(shares.kinds)
    across = 2 if count == 4 else min(3, count)  # panels side by side
    tall = min(max(0.165 * len(shares.blocks), 1.0), 6.0)  # height of a panel, inches
    figure, grid = _page(-(-count // across), across, tall, margin=0.55 + 0.062 * max(map(len, shares.blocks)))
    for i, (kind, share) in enumerate(shares.kinds.items()):
        cell = grid[i // across, i % across].subgridspec(1, 2, width_ratios=(2.6, 1), wspace=0.07)
        heat, bars = figure.add_subplot(cell[0]), figure.add_subplot(cell[1])
        _heat_map(heat, shares.steps, share)
        _final_bars(bars, share[:, -1], shares.overall[-1])
        heat.set_title(kind or ("others" if count > 1 else ""), loc="left", fontsize=9.5, weight="bold", color=INK)
        if i % across == 0:
            _name_blocks(heat, shares.blocks, tall)
        if i + across < count:
            heat.set_xticklabels([])
            bars.set_xticklabels([])
        else:
            heat.set_xlabel("optimiser step", fontsize=8, color=GREY)
            bars.set_xlabel("kept at the end", fontsize=8, color=GREY)
    first, last = shares.overall[[0, -1]]
    heading(
        figure,
        "Where the budget went",
        "Share of each weight matrix that its budget keeps, by block and training step",
        f"dashed: all matrices together, {first:.0%} → {last:.0%} of {_short(shares.entries)} entries"
        + ("; hatched: no value" if shares.has_gaps else ""),
    )
    _colour_bar(figure)
    return save_figure(figure, path)


def _page(down: int, across: int, tall: float, *, margin: float) -> tuple[Figure, GridSpec]:
    """Return a figure for a grid of panels `tall` inches high, with `margin` inches for the names left of them."""
    top, bottom, gap = 1.15, 0.55, 0.42
    width = max(margin + 3.0 * across, 6.8)
    height = top + bottom + down * tall + (down - 1) * gap
    figure = new_figure(width, height)
    grid = figure.add_gridspec(
        down, across, left=margin / width, right=1 - 0.22 / width, top=1 - top / height, bottom=bottom / height,
        wspace=0.11, hspace=gap / tall,
    )  # fmt: skip
    return figure, grid


def _name_blocks(axes: Axes, blocks: Sequence[str], tall: float) -> None:
    every = math.ceil(0.125 * len(blocks) / tall)  # a label needs 0.125 inches
    axes.set_yticks(range(0, len(blocks), every), blocks[::every])
    axes.set_ylabel("block", fontsize=8, color=GREY)


def _heat_map(axes: Axes, steps: np.ndarray, share: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    # a budget holds until the next one is set: a cell begins at its step
    width = np.median(np.diff(steps)) if len(steps) > 1 else 1
    edges = np.append(steps, steps[-1] + width)
    axes.pcolormesh(
        edges, np.arange(len(share) + 1) - 0.5, np.ma.masked_invalid(share), cmap=shares_map(), vmin=0, vmax=1,
        rasterized=True,
    )  # fmt: skip
    draw_hatching(axes, edges[0], -0.5, edges[-1] - edges[0], len(share))
    axes.hlines(np.arange(1, len(share)) - 0.5, edges[0], edges[-1], color="white", linewidth=0.8)
    axes.set_ylim(len(share) - 0.5, -0.5)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_yticks([])
    ticks = MaxNLocator(4, integer=True).tick_values(edges[0], edges[-1]) if len(steps) > 1 else steps
    axes.set_xticks([t for t in ticks if edges[0] <= t < edges[-1] - 0.08 * (edges[-1] - edges[0])])
    style_axes(axes)


def _final_bars(axes: Axes, share: np.ndarray, overall: float) -> None:
    axes.axvline(overall, color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
    for row in np.flatnonzero(np.isnan(share)):
        draw_hatching(axes, 0, row - 0.37, 1, 0.74)
    axes.barh(range(len(share)), np.nan_to_num(share), height=0.74, color=shares_map()(0.7))
    axes.set_ylim(len(share) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "50", "100%"])
    axes.set_yticks([])
    style_axes(axes)
    axes.spines["left"].set(visible=True, color=PALE)


def _colour_bar(figure: Figure) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    width, height = figure.get_size_inches()
    axes = figure.add_axes((1 - 1.75 / width, 1 - 0.3 / height, 1.45 / width, 0.1 / height))
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), shares_map()), cax=axes, orientation="horizontal")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    bar.set_ticks([0, 0.5, 1], labels=["0", "50", "100%"])
    style_axes(axes)
    axes.text(-0.06, 0.5, "kept", ha="right", va="center", transform=axes.transAxes, fontsize=7.5, color=GREY)


def _short(count: int) -> str:
    """Write a count in short: 1234567 -> 1.2 M."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f} {letter}"
    return str(count)
