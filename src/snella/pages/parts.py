"""What a page is made of: sections of parts, each of a kind that the template knows how to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined

from snella.json_files import without_nan
from snella.pages.charts import library


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than a text."""

    text: str
    value: float | None = None  # by which the column is sorted; None: by the text
    link: str = ""  # relative address of a page
    shows: str = ""  # key of the gallery that a click shows


@dataclass(frozen=True)
class Grid:
    """A table whose columns can be sorted."""

    kind: ClassVar[str] = "table"
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    caption: str = ""
    left: int = 1  # columns of text, on the left
    cells: Sequence[Sequence[Cell]] = field(init=False, default=())

    def __post_init__(self) -> None:
        cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]
        object.__setattr__(self, "cells", cells)


@dataclass(frozen=True)
class Chart:
    """A chart, in Vega-Lite; a click on a mark whose datum has a `cell` shows the gallery of that key."""

    kind: ClassVar[str] = "chart"
    spec: Mapping[str, Any]
    label: str  # what it shows, for those who cannot see it


@dataclass(frozen=True)
class Shot:
    """An image with what is said of it."""

    name: str
    text: str
    thumbnail: int | None = None  # its place among the page's; None: there is none


@dataclass(frozen=True)
class Gallery:
    """Images side by side, folded up where there is a title."""

    kind: ClassVar[str] = "gallery"
    shots: Sequence[Shot]
    title: str = ""
    left_out: int = 0  # images that would be here too
    wide: bool = False  # each is two pictures side by side


@dataclass(frozen=True)
class Clicked:
    """The place where the gallery of a clicked cell is shown."""

    kind: ClassVar[str] = "clicked"
    galleries: Mapping[str, Gallery]
    text: str  # what to click


@dataclass(frozen=True)
class Figure:
    """A picture, as a data URI."""

    kind: ClassVar[str] = "figure"
    source: str
    label: str
    pixelated: bool = False


@dataclass(frozen=True)
class Words:
    """Lines of text; `code`: as they are, to be copied."""

    kind: ClassVar[str] = "words"
    lines: Sequence[str]
    code: bool = False
    title: str = ""  # folded up below it


Part = Grid | Chart | Gallery | Clicked | Figure | Words


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """A whole page; `thumbnails` are data URIs."""

    title: str
    lead: str
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    notes: Sequence[str] = ()
    thumbnails: Sequence[str] = ()


def render(page: Page) -> str:
    """Return the HTML of a page: names in it are text, never markup or script, and nothing is loaded from elsewhere."""
    environment = Environment(
        loader=PackageLoader("snella.pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    parts = [part for section in page.sections for part in section.parts]
    charts = [part for part in parts if isinstance(part, Chart)]
    galleries = {
        key: {"title": found.title, "left_out": found.left_out, "shots": [vars(shot) for shot in found.shots]}
        for part in parts
        if isinstance(part, Clicked)
        for key, found in part.galleries.items()
    }
    data: Any = {"charts": [part.spec for part in charts], "thumbnails": page.thumbnails, "galleries": galleries}
    numbers = {id(chart): number for number, chart in enumerate(charts)}
    text = environment.get_template("page.html").render(
        page=page, data=without_nan(data), numbers=numbers, library=library() if charts else "", identity=id
    )
    # a name in an encoding of its own has halves of characters, which no file can hold
    return text.encode("utf-8", "backslashreplace").decode()
