"""Names of classes from a file beside the data (`classes.csv`, `labels.txt`), where it can be joined for sure."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence

from snella.data.folders.tree import Tree, near_files
from snella.data.paths import read_text
from snella.errors import UserError

FILE = re.compile(
    r"(?:.*[/_-])?(?:class|classes|label|labels|names|categories|classnames)(?:[_-]?(?:names?|list|map))?\.\w+"
)
_OF_ID = frozenset(("id", "ids", "idx", "index", "number", "no", "int", "code", "label"))
_OF_NAME = frozenset(("name", "names", "str", "string", "text", "title"))


def class_names(found: Tree, labels: Sequence[str]) -> tuple[tuple[str, ...], str] | None:
    """Return the names of numbered labels, in their order, and the file that has them.

    A table is joined if one of its columns holds these numbers and no others and goes with one column of names by its
    title; a list if it has a name for each number, counted from the first of them. Otherwise None.
    """
    if len(labels) < 2 or not all(map(_is_number, labels)):
        return None
    for file in near_files(found):
        if not FILE.fullmatch(file.lower()):
            continue
        try:
            lines = [line for line in read_text(found.path(file)).splitlines() if line.strip()]
        except UserError:
            continue
        names = _from_table(lines, labels) if file.lower().endswith((".csv", ".tsv")) else _from_list(lines, labels)
        if names and len(set(names)) == len(names):
            return names, os.path.basename(file)
    return None


def _from_table(lines: Sequence[str], labels: Sequence[str]) -> tuple[str, ...] | None:
    mark = next((mark for mark in "\t;," if lines and mark in lines[0]), ",")
    try:
        header, *rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=mark)]
    except (csv.Error, ValueError):  # ValueError: without a row
        return None
    rows = [row for row in rows if len(row) == len(header)]
    numbers = {int(label) for label in labels}
    found: list[tuple[str, ...]] = []
    for i, title in enumerate(header):
        column = [row[i] for row in rows]
        if not all(map(_is_number, column)) or {int(cell) for cell in column} != numbers:
            continue
        for j, other in enumerate(header):
            pairs = {(int(row[i]), row[j]) for row in rows}
            named = i != j and _rest(title, _OF_ID) == _rest(other, _OF_NAME) and bool(_words(other) & _OF_NAME)
            if named and len(pairs) == len(numbers):
                names = dict(pairs)
                found.append(tuple(names[int(label)] for label in labels))
    return found[0] if len(found) == 1 else None


def _from_list(lines: Sequence[str], labels: Sequence[str]) -> tuple[str, ...] | None:
    cells = [re.split(r"[\s,:;]+", line.strip(), maxsplit=1) for line in lines]
    if all(len(cell) == 2 and _is_number(cell[0]) for cell in cells):  # "0 cat"
        names = {int(cell[0]): cell[1] for cell in cells}
        complete = len(names) == len(lines) and {int(label) for label in labels} == names.keys()
        return tuple(names[int(label)] for label in labels) if complete else None
    first = int(labels[0])
    counted = [int(label) for label in labels] == list(range(first, first + len(lines)))
    return tuple(line.strip() for line in lines) if first in (0, 1) and counted else None


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 19


def _words(title: str) -> set[str]:
    return set(re.findall(r"[a-z]+", title.lower()))


def _rest(title: str, without: frozenset[str]) -> set[str]:
    """Return the words of a column's title without those of ids or names; "class" says nothing by itself."""
    return _words(title) - without - {"class", "category", "int", "str"}
