"""Figures of an evaluation and of a training: the confusion matrix and the curves."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from snella.report.allocation import allocation_figure
from snella.report.rows import read_allocations, read_metrics
from snella.report.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
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
    from torch import Tensor

WRITTEN = 20  # classes up to which each cell bears its numbers
NAMED = 60  # classes up to which every class is named
LONGEST = 24  # letters of a class name in a figure


def confusion_figure(
    confusion: Tensor, classes: Sequence[str], path: str | os.PathLike[str], *, unit: str = "images"
) -> Path:
    """Draw a confusion matrix as shares of each true class, with the counts written in for up to 20 classes.

    Args:
        confusion: (K, K) counts, true class x predicted class.
        classes: the K names.
        path: file to write (its ending says the format); replaced if it is there.
        unit: what is counted.

    Returns:
        The path.
    """
    counts = confusion.cpu().numpy()
    total = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(total, 1)  # (K, K)
    K = len(classes)
    labels = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in classes]
    cell = max(0.62, 2.4 / K) if K <= WRITTEN else max(7.0 / K, 0.14 if K <= NAMED else 0)  # inches
    every = math.ceil(0.14 / cell)  # a label needs 0.14 inches
    margin = 0.45 + 0.066 * max(map(len, labels))
    upright = margin - 0.45 < cell
    side, top, bottom = K * cell, 0.85, 0.5 if upright else margin
    width, height = max(margin + side + 0.8, 5.0), top + side + bottom
    figure = new_figure(width, height)
    axes = figure.add_axes((margin / width, bottom / height, side / width, side / height))
    # never taken for one another: white, so that the mistakes stand out
    image = axes.imshow(np.ma.masked_equal(shares, 0), cmap=shares_map(), vmin=0, vmax=1, interpolation="nearest")
    for row in np.flatnonzero(total[:, 0] == 0):
        draw_hatching(axes, -0.5, row - 0.5, K, 1)
    axes.set_xticks(range(0, K, every), labels[::every], rotation=0 if upright else 90, parse_math=False)
    axes.set_yticks(range(0, K, every), labels[::every], parse_math=False)
    axes.set_xlabel("predicted class", fontsize=8.5, color=GREY)
    axes.set_ylabel("true class", fontsize=8.5, color=GREY)
    style_axes(axes)
    axes.spines[:].set(visible=True, color=PALE)
    if K <= WRITTEN:
        _write_cells(axes, counts, shares)
    bar = figure.add_axes(((margin + side + 0.15) / width, bottom / height, 0.1 / width, min(side, 1.8) / height))
    figure.colorbar(image, cax=bar).outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.set_yticks([0, 0.5, 1], ["0", "50", "100%"])
    style_axes(bar)
    heading(
        figure,
        "Which classes are taken for which",
        f"shares of each true class (rows); {counts.trace():,} of {counts.sum():,} {unit} are right"
        + (f"; hatched: no {unit}" if (total == 0).any() else ""),
    )
    return save_figure(figure, path)


def _write_cells(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    """Write share and count into each cell; those without an image stay empty, so that the mistakes stand out."""
    for row, column in np.argwhere(counts > 0):
        colour = "white" if shares[row, column] > 0.45 else INK
        share, count = f"{shares[row, column]:.0%}", f"{counts[row, column]:,}"
        axes.text(column, row - 0.02, share, ha="center", va="bottom", fontsize=9, color=colour)
        axes.text(column, row + 0.08, count, ha="center", va="top", fontsize=7, color=colour)


def training_curves_figure(
    rows: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    best_epoch: int,
    metric: str = "top1",
    name: str | None = None,
    higher_is_better: bool = True,
) -> Path:
    """Draw the loss and a validation metric over the epochs, with the best epoch marked.

    Args:
        rows: of metrics.jsonl: {"kind": "train", "step", "loss"} and {"kind": "val", "step", "epoch", metrics...}.
        path: file to write (its ending says the format); replaced if it is there.
        best_epoch: the one to mark, where there is a row of it.
        metric: the one that has chosen it.
        name: what to call it; None: the metric's own name.
        higher_is_better: whether it may be a share, to be shown in percent.

    Returns:
        The path.

    Raises:
        ValueError: no row of a validation.
    """
    val = [row for row in rows if row["kind"] == "val"]
    train = [row for row in rows if row["kind"] == "train"]
    if not val:
        raise ValueError("no row of a validation to draw")
    width, height = 8.6, 3.75
    figure = new_figure(width, height)
    left, right = (figure.add_axes((x / width, 0.5 / height, 3.45 / width, 2.15 / height)) for x in (0.6, 4.9))
    _loss_curves(left, train, val, both=metric != "loss")
    is_share = higher_is_better and all(0 <= row[metric] <= 1 or math.isnan(row[metric]) for row in val)
    best = next((row for row in val if row["epoch"] == best_epoch), None)
    _score_curve(right, val, metric, best, title=f"validation {name or metric}", is_share=is_share)
    text = f"best epoch: {best_epoch} of {val[-1]['epoch']}"
    if best is not None:
        value = f"{best[metric]:.1%}" if is_share else f"{best[metric]:.4g}"
        text += f", with {value} {name or metric} on the validation images (circle)"
    heading(figure, "How the training went", text)
    return save_figure(figure, path)


def _loss_curves(
    axes: Axes, train: Sequence[Mapping[str, Any]], val: Sequence[Mapping[str, Any]], *, both: bool
) -> None:
    """Draw the training loss, and with `both` the validation loss, over the epochs."""
    steps_per_epoch = val[-1]["step"] / val[-1]["epoch"]
    epochs = [row["step"] / steps_per_epoch for row in train]
    axes.plot(epochs, [row["loss"] for row in train], color=BLUE, linewidth=1.4, label="training")
    if both:
        _validation_curve(axes, val, [row.get("loss", math.nan) for row in val], label="validation")
    _curve_axes(axes, "loss", val[-1]["epoch"])
    axes.legend(loc="upper right", fontsize=8, frameon=False, labelcolor="linecolor", handlelength=1.2)


def _score_curve(
    axes: Axes,
    val: Sequence[Mapping[str, Any]],
    metric: str,
    best: Mapping[str, Any] | None,
    *,
    title: str,
    is_share: bool,
) -> None:
    """Draw a validation metric over the epochs, with a circle round the row of the best one."""
    from matplotlib.ticker import PercentFormatter

    _validation_curve(axes, val, [row[metric] for row in val])
    if best is not None:
        axes.plot(best["epoch"], best[metric], "o", markersize=8, markerfacecolor="none", markeredgecolor=INK)
    _curve_axes(axes, title, val[-1]["epoch"])
    if is_share:
        axes.yaxis.set_major_formatter(PercentFormatter(1))


def _validation_curve(
    axes: Axes, val: Sequence[Mapping[str, Any]], values: Sequence[float], label: str | None = None
) -> None:
    """Draw the values of the rows over their epochs, with a dot at each where they are not too many."""
    epochs, marker = [row["epoch"] for row in val], "o" if len(val) <= 40 else ""
    axes.plot(epochs, values, color=ORANGE, linewidth=1.4, markersize=3, marker=marker, label=label)


def _curve_axes(axes: Axes, title: str, epochs: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontsize=9.5, weight="bold", color=INK)
    axes.set_xlabel("epoch", fontsize=8, color=GREY)
    axes.set_xlim(0, epochs * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    style_axes(axes)
    axes.spines["bottom"].set(visible=True, color=PALE)


def training_figures(folder: Path, metric: str, name: str, higher_is_better: bool, *, best_epoch: int | None) -> None:
    """Draw where the budget of a run went, and how its training went, into its folder.

    Args:
        metric: what chooses the best epoch, in metrics.jsonl.
        name: what people call it.
        best_epoch: None: curves are not drawn.
    """
    if allocations := read_allocations(folder):
        allocation_figure(allocations, folder / "allocation.png")
    if best_epoch is not None:
        rows = read_metrics(folder, metric)
        curves = folder / "curves.png"
        training_curves_figure(
            rows, curves, best_epoch=best_epoch, metric=metric, name=name, higher_is_better=higher_is_better
        )
