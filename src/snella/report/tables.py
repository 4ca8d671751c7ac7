"""Tables for a terminal (rich). Names of classes and files are shown as they are, never read as markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

NOTHING = "–"


def is_share(metric: str) -> bool:
    """Return whether a metric is shown in %: all but losses are."""
    return not metric.endswith("loss")


def format_metric(metric: str, value: float) -> str:
    """Write a metric as people read it: a loss as it is, all others in %."""
    return f"{value:.1%}" if is_share(metric) else f"{value:.4f}"


def summary_table(summary: Mapping[str, Any], metrics: Mapping[str, str], *, title: str) -> Table:
    """Make the table that ends a training, in a few lines.

    Args:
        summary: what summary.json holds.
        metrics: those to show, of the test split, or of val where nothing was tested -> what to call them.
        title: what was trained on what.
    """
    table = Table(title=Text(title), title_justify="left", show_header=False)
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
