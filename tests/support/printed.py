"""What rich prints, as text."""

from __future__ import annotations

from rich.console import Console, RenderableType


def text(report: RenderableType) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report)
    return console.export_text()


def rows(report: str) -> dict[str, list[str]]:
    """Table rows by their first cell."""
    cells = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in report.splitlines()]
    return {row[0]: row[1:] for row in cells if len(row) > 1}


def cells(table: RenderableType) -> list[list[str]]:
    """The rows of a table as it is shown, without its frame."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text(table).splitlines() if "│" in line]
