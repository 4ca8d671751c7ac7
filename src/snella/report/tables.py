"""Tables: for a terminal (rich), where names of classes and files are never read as markup, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from snella.console import shown

NOTHING = "–"
UNITS = ("mae", "rmse", "r2")  # metrics of quantities; R2 may be below 0
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet runs


def is_share(metric: str) -> bool:
    """Return whether a metric is shown in %: all but losses and numbers in units of the data are."""
    return not metric.endswith(("loss", *UNITS))


def format_metric(metric: str, value: float) -> str:
    """Write a metric as people read it: a loss, and a number in units of the data, as it is, all others in %."""
    if is_share(metric):
        return f"{value:.1%}"
    return f"{value:.4g}" if metric.endswith(UNITS) else f"{value:.4f}"


def summary_table(summary: Mapping[str, Any], metrics: Mapping[str, str], *, title: str) -> Table:
    """Make the table that ends a training, in a few lines.

    Args:
        summary: what summary.json holds.
        metrics: those to show, of the test split, or of val where nothing was tested -> what to call them.
        title: what was trained on what.
    """
    table = Table(title=shown(title), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    split = "test" if "test" in summary else "val"
    for metric, name in metrics.items():
        table.add_row(f"{split} {name}", format_metric(metric, summary[split][metric]))
    table.add_row("trainable parameters", f"{summary['trainable_parameters']:,}")
    table.add_row("adapter size", decimal_bytes(summary["adapter_bytes"]))
    table.add_row("peak memory", decimal_bytes(summary["peak_memory_bytes"]))
    table.add_row("time", duration(summary["seconds"]))
    return table


def new_table(title: str | None, *, left: Sequence[str], right: Sequence[str]) -> Table:
    """Make an empty table of columns that are aligned on the left, and after them on the right."""
    table = Table(title=title, title_justify="left")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right")
    return table


def percent(share: float | None) -> str:
    """Write a share in %: 0.123 -> 12.3%; – for None."""
    return NOTHING if share is None else f"{share:.1%}"


def decimal_bytes(count: int) -> str:
    """Write a size in bytes: 1234567 -> 1.2 MB."""
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def duration(seconds: float) -> str:
    """Write a time: 75 -> 1 min 15 s."""
    total = round(seconds)
    hours, minutes = total // 3600, total // 60 % 60
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {total % 60:02} s" if minutes else f"{total} s"


def share(part: int, whole: int) -> float | None:
    """Return a part of the whole, from 0 to 1; None where there is nothing to divide by."""
    return part / whole if whole else None


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows as CSV, with the columns of all of them.

    A text that a spreadsheet would run as a formula gets an apostrophe before it, which spreadsheets do not show.

    >>> print(csv_text([{"image": "=1+1.png", "difference": -0.5}]), end="")
    image,difference
    '=1+1.png,-0.5
    """
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_inert, columns))
    writer.writerows([_inert(row.get(name, "")) for name in columns] for row in rows)
    return text.getvalue()


def _inert(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell
