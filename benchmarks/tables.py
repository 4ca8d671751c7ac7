"""A comparison's results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from benchmarks.timing import paired_ratio


def machine_line(result: Mapping[str, Any]) -> str:
    """Describe the machine and the precision in a line."""
    machine, settings = result["machine"], result["settings"]
    place = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    return f"{place}, torch {machine['torch']}, {settings['precision']}"


def tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the tables of each batch size: steps, memory, evaluation; and an overview of several batch sizes."""
    for entry in result["results"]:
        title = f"{result['settings']['model']}, batch {entry['batch']}, {machine_line(result)}"
        yield _training(f"training step: {title}", entry["methods"])
        yield _memory("memory of a training step", entry["methods"])
        yield _evaluation(f"forward pass in evaluation, batch {entry['batch']}", entry["methods"])
    if len(result["results"]) > 1:
        yield _by_batch(result)


def ratio(row: Mapping[str, Any], other: Mapping[str, Any] | None, key: str) -> float | None:
    """Divide a method's time (a key with samples) or memory (bytes) by another's; None where one is missing."""
    if other is None or row[key] is None or other[key] is None:
        return None
    if key.endswith("_bytes"):
        return row[key] / other[key]
    return paired_ratio(row[key]["samples"], other[key]["samples"])


def _training(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table(title, "step", "/full", "/lora", "forward + backward", "/full", "/lora")
    for name, row in rows.items():
        cells = []
        for key in ("step", "forward_backward"):
            cells += [_duration(row[key]["median"]), *_ratios(rows, row, key)]
        table.add_row(name, *cells)
    return table


def _memory(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    has_peak = any(row["peak_bytes"] is not None for row in rows.values())
    columns = (
        "saved MiB",
        "total MiB",
        "/full",
        "/lora",
        *(("peak MiB", "/full", "/lora") if has_peak else ()),
        "trained",
    )
    table = _table(title, *columns)
    for name, row in rows.items():
        cells = [_mib(row["saved_bytes"]), _mib(row["total_bytes"]), *_ratios(rows, row, "total_bytes")]
        if has_peak:
            cells += [_mib(row["peak_bytes"]), *_ratios(rows, row, "peak_bytes")]
        table.add_row(name, *cells, f"{row['trainable'] / 1e6:.1f} M")
    return table


def _evaluation(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table(title, "time", "/plain model")
    for name, row in rows.items():
        if row["evaluation"] is not None:
            label = "full (the plain model)" if name == "full" else name
            table.add_row(
                label, _duration(row["evaluation"]["median"]), _ratio_text(ratio(row, rows.get("full"), "evaluation"))
            )
    return table


def _by_batch(result: Mapping[str, Any]) -> Table:
    """Make a table of steps and total memory, and both by full's: a row for a batch size, a column for a method."""
    methods = result["settings"]["methods"]
    table = Table(title="step and total memory by batch size (beside them: by full's)", title_justify="left")
    table.add_column("batch", justify="right")
    for name in methods:
        table.add_column(name, justify="right")
    for entry in result["results"]:
        rows = entry["methods"]
        cells = []
        for name in methods:
            row, full = rows[name], rows.get("full")
            time, memory = _duration(row["step"]["median"]), f"{_mib(row['total_bytes'])} MiB"
            if name != "full" and full is not None:
                time += f"  {_ratio_text(ratio(row, full, 'step'))}"
                memory += f"  {_ratio_text(ratio(row, full, 'total_bytes'))}"
            cells.append(f"{time}\n{memory}")
        table.add_row(str(entry["batch"]), *cells)
    return table


def _table(title: str, *right: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("method", no_wrap=True)
    for name in right:
        table.add_column(name, justify="right")
    return table


def _ratios(rows: Mapping[str, Mapping[str, Any]], row: Mapping[str, Any], key: str) -> tuple[str, str]:
    """Return a value divided by full's and by LoRA's, as text."""
    return _ratio_text(ratio(row, rows.get("full"), key)), _ratio_text(ratio(row, rows.get("lora"), key))


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _ratio_text(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"
