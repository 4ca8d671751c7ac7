"""How each class fared, and what was predicted, as rows and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from torch import Tensor

from snella.console import shown
from snella.report.tables import new_table, percent, share


def class_table(rows: Sequence[ClassRow]) -> Table:
    """Make the table of how each class fared (`Evaluation.table`); – where there is nothing to divide by."""
    table = new_table("by class", left=("class",), right=("images", "recall", "precision", "F1"))
    for row in rows:
        shares = (percent(share) for share in (row.recall, row.precision, row.f1))
        table.add_row(shown(row.name), f"{row.count:,}", *shares)
    return table


def prediction_table(rows: Sequence[Mapping[str, Any]], *, runners_up: int = 2) -> Table:
    """Make the table of the class of each image and the next likely ones.

    Args:
        rows: {"image": path, "class": name, "probability": of it, "probabilities": {class: probability}}.
        runners_up: how many other classes to show.
    """
    table = new_table(None, left=("image", "class"), right=("probability",))
    table.add_column("next", overflow="fold")
    for row in rows:
        others = {name: share for name, share in row["probabilities"].items() if name != row["class"]}
        best = sorted(others, key=lambda name: -others[name])[:runners_up]
        following = ", ".join(f"{name} {percent(others[name])}" for name in best)
        table.add_row(shown(row["image"]), shown(row["class"]), percent(row["probability"]), shown(following))
    return table


@dataclass(frozen=True)
class ClassRow:
    """How one class fared; fractions from 0 to 1, None where there is nothing to divide by."""

    name: str
    count: int  # examples of the class
    recall: float | None  # the class's own accuracy; None: no example
    precision: float | None  # None: never predicted
    f1: float | None  # None: neither


def class_rows(classes: Sequence[str], confusion: Tensor) -> tuple[ClassRow, ...]:
    """Return the figures of each class from a confusion matrix (K, K), true class x predicted class."""
    hits = confusion.diagonal().tolist()
    true = confusion.sum(dim=1).tolist()
    predicted = confusion.sum(dim=0).tolist()
    return tuple(
        ClassRow(
            name=name,
            count=true[k],
            recall=share(hits[k], true[k]),
            precision=share(hits[k], predicted[k]),
            f1=share(2 * hits[k], true[k] + predicted[k]),
        )
        for k, name in enumerate(classes)
    )
