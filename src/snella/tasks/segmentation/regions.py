"""How each class of a segmentation fared, from the confusion matrix of its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


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
    """The per-class figures of a confusion matrix (K, K) of pixels, true class x predicted class."""
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


def share(part: int, whole: int) -> float | None:
    """A part of the whole, from 0 to 1; None where there is nothing to divide by."""
    return part / whole if whole else None
