"""The rows that a training writes, read back: metrics.jsonl and allocation.jsonl of a run folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from snella.json_files import Count, From, Record, read_rows

METRICS, ALLOCATION = "metrics.jsonl", "allocation.jsonl"
REMEDY = "restore it, or delete it: the figures then lack its rows"
Positive = Annotated[int, From(1)]

_METRICS_HOLDS = Record({"kind": Literal["train", "val"], "step": Positive, "epoch": Positive}, others=float | None)
_OF_TRAINING = ("loss", "lr", "images_per_second")
_ALLOCATION_HOLDS = Record(
    {"step": Positive, "budget": Count, "kept": dict[str, Count], "size": dict[str, Positive], "skipped": Count}
)


def read_metrics(folder: Path, metric: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl, none where there is no file; a number that was not finite is NaN.

    Args:
        metric: what each row of a validation must have.

    Raises:
        UserError: the file is damaged; the message names the line.
    """

    def fault(row: dict[str, Any]) -> str | None:
        needed = _OF_TRAINING if row["kind"] == "train" else (metric,) if metric else ()
        return next((f"{name} is missing, and should be a number" for name in needed if name not in row), None)

    rows = read_rows(folder / METRICS, _METRICS_HOLDS, remedy=REMEDY, fault=fault)
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]


def read_allocations(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of allocation.jsonl, none where there is no file. Raises UserError where it is damaged."""

    def fault(row: dict[str, Any]) -> str | None:
        kept, size = row["kept"], row["size"]
        if kept.keys() != size.keys() or not kept:
            return "kept and size are of different matrices"
        return next((f"kept.{name} is above its size" for name in kept if kept[name] > size[name]), None)

    return read_rows(folder / ALLOCATION, _ALLOCATION_HOLDS, remedy=REMEDY, fault=fault)
