"""How each label fared, and what was predicted, as rows, as tables and as a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

from snella.console import shown
from snella.errors import cut
from snella.report.style import BLUE, GREY, PALE, heading, new_figure, save_figure, style_axes
from snella.report.tables import new_table, percent, share

DRAWN = 60  # labels of a figure
LONGEST = 28  # letters of a label in a figure


@dataclass(frozen=True)
class LabelRow:
    """How one label fared; fractions from 0 to 1, None where there is nothing to divide by."""

    name: str
    count: int  # images that have it
    average_precision: float | None  # None: no image has it
    threshold: float  # probability from which on it is told
    recall: float | None
    precision: float | None  # None: never told
    f1: float | None


def label_rows(
    classes: Sequence[str], probabilities: Tensor, targets: Tensor, thresholds: Sequence[float]
) -> tuple[LabelRow, ...]:
    """Return the figures of each label from probabilities (n, K) and targets (n, K), 0 or 1."""
    rows = []
    for k, name in enumerate(classes):
        found, true = probabilities[:, k], targets[:, k].bool()
        told = found >= thresholds[k]
        hits, count, predicted = (int(x.sum()) for x in (told & true, true, told))
        precision = binary_average_precision(found, true.long()).item() if count else None
        f1 = share(2 * hits, count + predicted)
        rows.append(LabelRow(name, count, precision, thresholds[k], share(hits, count), share(hits, predicted), f1))
    return tuple(rows)


def best_threshold(probabilities: Tensor, targets: Tensor) -> float:
    """Return the threshold of a label, for probabilities (n,) and targets (n,), 0 or 1, of which F1 is highest.

    It lies half way between two probabilities; of equal ones it is the nearest to 0.5, and 0.5 where no image has the
    label.
    """
    if not targets.any():
        return 0.5
    ordered, order = probabilities.sort(descending=True, stable=True)
    hits = targets[order].cumsum(0)
    told = hits.new_ones(len(hits)).cumsum(0)
    f1 = 2 * hits / (told + targets.sum())  # of telling the first, the first two ...
    below = ordered.roll(-1)
    below[-1] = 0
    between = (ordered + below) / 2
    parted = ordered > below  # equal ones are told together
    parted[-1] = True
    candidates = between[parted & (f1 == f1[parted].max())]
    return float(candidates[(candidates - 0.5).abs().argmin()])


def label_table(rows: Sequence[LabelRow]) -> Table:
    """Make the table of how each label fared; – where there is nothing to divide by."""
    right = ("images", "average precision", "threshold", "recall", "precision", "F1")
    table = new_table("by label", left=("label",), right=right)
    for row in rows:
        shares = (percent(value) for value in (row.recall, row.precision, row.f1))
        average = percent(row.average_precision)
        table.add_row(shown(row.name), f"{row.count:,}", average, f"{row.threshold:.3f}", *shares)
    return table


def labels_table(rows: Sequence[Mapping[str, Any]], *, runners_up: int = 2) -> Table:
    """Make the table of the labels of each image, and of the next likely ones.

    Args:
        rows: {"image": path, "labels": [name, ...], "probabilities": {label: probability}}.
        runners_up: how many other labels to show.
    """
    table = new_table(None, left=("image", "labels"), right=())
    table.add_column("next", overflow="fold")
    for row in rows:
        likely = sorted(row["probabilities"].items(), key=lambda pair: -pair[1])
        told = [f"{name} {percent(value)}" for name, value in likely if name in row["labels"]]
        others = [f"{name} {percent(value)}" for name, value in likely if name not in row["labels"]]
        table.add_row(shown(row["image"]), shown(", ".join(told)), shown(", ".join(others[:runners_up])))
    return table


def labels_figure(rows: Sequence[LabelRow], path: str | os.PathLike[str]) -> Path:
    """Draw the average precision of each label that some image has, the best first, up to 60 of them."""
    known = [(row, row.average_precision) for row in rows if row.average_precision is not None]
    known = sorted(known, key=lambda pair: -pair[1])
    drawn = known[:DRAWN]
    names = [cut(row.name, LONGEST) for row, _ in drawn]
    margin = 0.45 + 0.066 * max(map(len, names))
    side, top, bottom = 0.2 * len(drawn), 0.85, 0.5
    width, height = margin + 4.6, top + side + bottom
    figure = new_figure(width, height)
    axes = figure.add_axes((margin / width, bottom / height, 3.6 / width, side / height))
    axes.barh(range(len(drawn)), [value for _, value in drawn], color=BLUE, height=0.7)
    for i, (row, value) in enumerate(drawn):
        axes.text(value + 0.01, i, f"{value:.0%} of {row.count:,}", va="center", fontsize=7, color=GREY)
    axes.set_yticks(range(len(drawn)), names, parse_math=False)
    axes.set_ylim(len(drawn) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "50", "100%"])
    style_axes(axes)
    axes.grid(axis="x", color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    more = f"; the best {DRAWN} of {len(known)}" if len(known) > DRAWN else ""
    heading(figure, "How well each label is found", f"average precision, and images that have the label{more}")
    return save_figure(figure, path)
