"""How each class of a segmentation fared, from the confusion matrix of its pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from torch import Tensor

from snella.console import shown
from snella.report.tables import NOTHING, new_table, percent, share


@dataclass(frozen=True)
class RegionRow:
    """How one class fared over all pixels; fractions from 0 to 1, None where there is nothing to divide by."""

    name: str
    pixels: int  # of the class in the masks
    iou: float | None  # None: neither there nor predicted
    dice: float | None
    recall: float | None  # None: not there
    precision: float | None  # None: never predicted


def region_rows(classes: Sequence[str], confusion: Tensor) -> tuple[RegionRow, ...]:
    """Return the figures of each class from a confusion matrix (K, K) of pixels, true class x predicted class."""
    hits = confusion.diagonal().tolist()
    true = confusion.sum(dim=1).tolist()
    predicted = confusion.sum(dim=0).tolist()
    return tuple(
        RegionRow(
            name=name,
            pixels=true[k],
            iou=share(hits[k], true[k] + predicted[k] - hits[k]),
            dice=share(2 * hits[k], true[k] + predicted[k]),
            recall=share(hits[k], true[k]),
            precision=share(hits[k], predicted[k]),
        )
        for k, name in enumerate(classes)
    )


def mean_share(values: Iterable[float | None]) -> float:
    """Return the mean of those that are there, as mIoU is of the classes' IoU: at least one."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def region_table(rows: Sequence[RegionRow]) -> Table:
    """Make the table of how each class of a segmentation fared; – where there is nothing to divide by."""
    table = new_table("by class", left=("class",), right=("pixels", "IoU", "Dice", "recall", "precision"))
    for row in rows:
        shares = (percent(share) for share in (row.iou, row.dice, row.recall, row.precision))
        table.add_row(shown(row.name), f"{row.pixels:,}", *shares)
    return table


def area_table(rows: Sequence[Mapping[str, Any]], *, most: int = 4) -> Table:
    """Make the table of the largest classes of each image.

    Args:
        rows: {"image": path, "areas": {class: {"pixels", "share" of the image}}, and files that were written}.
        most: how many classes to show.
    """
    table = new_table(None, left=("image", "areas", "mask"), right=())
    for row in rows:
        areas = sorted(row["areas"].items(), key=lambda item: -item[1]["pixels"])
        texts = [f"{name} {percent(area['share'])}" for name, area in areas if area["pixels"]]
        more = f", {len(texts) - most} more" if len(texts) > most else ""
        table.add_row(shown(row["image"]), shown(", ".join(texts[:most]) + more), shown(str(row.get("mask", NOTHING))))
    return table
