"""Tables of images whose columns a task reads itself: a manifest, or the tables and lists in a folder.

CSV, JSONL, TXT ─ ImageTable (a row for each image, its cells by column) ─ what a task makes of the cells
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from snella.data.folders.image_lists import ImageList, found_lists, labelled_lists, listed_splits
from snella.data.folders.names import SPLIT_COLUMNS, SPLIT_NAMES
from snella.data.folders.rows import column_names, read_table
from snella.data.folders.tree import Tree
from snella.data.groups import put_in_group
from snella.data.layouts.manifests import (
    FILL_IN,
    PATH_COLUMNS,
    image_names,
    split_column,
    split_value,
)
from snella.errors import UserError, counted, listed

MOSTLY = 0.5  # share of a column's cells from which on it is taken for one of that kind, and the others for mistakes


@dataclass(frozen=True)
class TableRow:
    """An image's row."""

    image: str
    split: str  # "all" where there are no splits
    cells: Mapping[str, str]  # column -> text; lists of JSON as Python writes them, nothing as ""
    place: str  # what messages call it


@dataclass(frozen=True)
class ImageTable:
    """A table of images.

    Args:
        name: what messages call it.
        folder: what the images' names are below.
        columns: as they are written, without those of the image and of the split.
        numbered: all columns by number, as --label-column counts them.
    """

    name: str
    layout: str
    folder: str
    columns: tuple[str, ...]
    numbered: tuple[str, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()

    def values(self, column: str) -> list[str]:
        return [row.cells[column] for row in self.rows]

    def named(self, asked: str, flag: str) -> list[str]:
        """Return the columns that a flag names, several with commas between them, by title or number.

        Raises:
            UserError: there is no such column, or one is named twice.
        """
        whole = self._column(asked)
        names = [whole] if whole else [self._column(part.strip()) for part in asked.split(",")]
        found = [name for name in names if name is not None]
        if len(found) < len(names):
            part = next(part.strip() for part in asked.split(",") if self._column(part.strip()) is None)
            raise UserError(f"{flag} {part}: {self.name} has the columns {', '.join(self.columns)}; name one")
        if len(set(found)) < len(found):
            raise UserError(f"{flag} {asked} names a column twice; name each once")
        return found

    def _column(self, asked: str) -> str | None:
        by_title = {name.lower(): name for name in self.columns}
        if asked.lower() in by_title:
            return by_title[asked.lower()]
        number = int(asked) if asked.isascii() and asked.isdecimal() and len(asked) < 6 else -1
        found = self.numbered[number] if 0 <= number < len(self.numbered) else None
        return found if found in self.columns else None

    def splits(self) -> dict[str, str]:
        """Return the split of each image. Raises UserError for an image in two."""
        found: dict[str, str] = {}
        for row in self.rows:
            before = found.setdefault(row.image, row.split)
            if before != row.split:
                raise UserError(f"{row.place}: {row.image} is in {before} and in {row.split}; keep one")
        return found

    def grouped(self, asked: str | None) -> tuple[ImageTable, dict[str, str]]:
        """Return the table without the column of groups that is asked for, and the group of each image.

        Raises:
            UserError: there is no such column, or an image is of two groups.
        """
        if asked is None:
            return self, {}
        column = self.named(asked, "--group-column")[0]
        groups: dict[str, str] = {}
        for row in self.rows:
            if not row.cells[column]:
                raise UserError(f"{row.place}: {column} is missing; {FILL_IN}")
            put_in_group(groups, row.image, row.cells[column], row.place, row.image)
        return replace(self, columns=tuple(name for name in self.columns if name != column)), groups

    def mostly(self, fits: Callable[[str], bool]) -> list[str]:
        """Return the columns most of whose cells fit. Columns of splits are left out, whatever they hold."""
        usual = [name for name in self.columns if name.lower() not in SPLIT_COLUMNS]
        return [name for name in usual if sum(map(fits, self.values(name))) > MOSTLY * len(self.rows)]


def manifest_table(path: str, *, repeated: bool = False) -> ImageTable:
    """Read a manifest, of which an image may have several rows if `repeated`. Raises UserError."""
    rows = read_table(path, as_written=True)
    titles = column_names(rows)
    if len({name.lower() for name in titles}) < len(titles):
        twice = next(name for name in titles if [other.lower() for other in titles].count(name.lower()) > 1)
        raise UserError(f"{path} has two columns named {twice!r}; keep one")
    lower = [(line, {name.lower(): value for name, value in row.items()}) for line, row in rows]
    image = _image_column(path, titles)
    split = split_column(lower)
    names = image_names(path, rows, image, repeated=repeated)
    columns = tuple(name for name in titles if name != image and name.lower() != split)
    read = tuple(
        TableRow(
            name,
            split_value(low, path, line, split) if split else "all",
            {column: _text(row.get(column), f"{path} line {line}: {column}") for column in columns},
            f"{path} line {line}",
        )
        for name, (line, row), (_, low) in zip(names, rows, lower, strict=True)
    )
    return ImageTable(path, "manifest", os.path.dirname(path), columns, tuple(titles), read)


def _image_column(path: str, titles: Sequence[str]) -> str:
    present = [name for name in titles if name.lower() in PATH_COLUMNS]
    if len(present) == 1:
        return present[0]
    what = f"{len(present)} columns" if present else "no column"
    raise UserError(
        f"{path} has {what} for the image paths: name one {' or '.join(PATH_COLUMNS)} (found: {', '.join(titles)})"
    )


def _text(value: object, place: str) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, dict):
        raise UserError(f"{place} is an object; write a text, a number or a list")
    return str(value).strip()


def folder_table(found: Tree, asked: str | None = None) -> ImageTable | None:
    """Read the tables or lists of a folder's images, those of several splits as one; None where there are none.

    `asked`: the columns that are meant, with commas between them, where several tables may be read.
    """
    everything = found_lists(found)
    lists = labelled_lists(found, everything, asked)
    if not lists:
        return None
    titles = {one.file: _titles(one) for one in lists}
    columns = titles[lists[0].file]
    other = [one for one in lists if set(titles[one.file]) != set(columns)]
    if other and (columns == [] or any(one.split != "test" for one in other)):
        raise UserError(f"{other[0].file} has other columns than {lists[0].file}; name them alike in all")
    lists = [one for one in lists if one not in other]
    split = _split_column(lists)
    rows = []
    for one in lists:
        for image, cells in zip(one.images, one.cells, strict=True):
            row = dict(zip(titles[one.file], (cell.strip() for cell in cells), strict=True))
            part = SPLIT_NAMES[row.pop(split).lower()] if split else one.split
            rows.append(TableRow(image, part, row, f"{found.path(one.file)}, {image}"))
    files = [one.file for one in lists]
    if {row.split for row in rows} == {"all"} and (
        told := listed_splits(found, everything, {row.image for row in rows})
    ):
        rows = [replace(row, split=told[0][row.image]) for row in rows if row.image in told[0]]
        files += told[1]
    named = {row.image for row in rows}
    rest = [name for name in found.images if name not in named]
    notes = [f"{counted(len(rest), 'image')} that no table names left out: {listed(rest)}"] if rest else []
    return ImageTable(
        ", ".join(found.path(one.file) for one in lists),
        f"images listed in {', '.join(files)}",
        found.root,
        tuple(name for name in columns if name != split),
        ("", *columns),
        tuple(rows),
        (*found.notes, *notes, *(f"{one.file} has other columns, so its images are left out" for one in other)),
    )


def _titles(one: ImageList) -> list[str]:
    """Return what the columns are called, by number where they have no titles."""
    return [title or str(i) for i, title in enumerate(one.titles, start=1)]


def _split_column(lists: Sequence[ImageList]) -> str | None:
    """Return the column that says the split, if it holds splits alone in all lists."""
    for title in (title for title in lists[0].titles if title.lower() in SPLIT_COLUMNS):
        cells = [row[one.titles.index(title)] for one in lists for row in one.cells]
        if all(cell.strip().lower() in SPLIT_NAMES for cell in cells):
            return title
    return None
