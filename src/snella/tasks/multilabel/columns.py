"""What the labels of each row of a table are: a cell with several labels, or a column of 0 and 1 for each label."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from snella.data.layouts.label_lists import USUAL
from snella.data.layouts.manifests import BITS, NOT_LABELS
from snella.data.listing import natural_order
from snella.data.paths import composed
from snella.data.readers.tables import ImageTable
from snella.errors import UserError, counted, listed

SEPARATORS = {";": ";", "|": "|", ",": ",", "space": " "}  # what --label-separator takes -> what it stands for
ONE_LABEL = "none"  # in its place: a cell is one label
LABEL_COLUMN, LABEL_SEPARATOR = "--label-column", "--label-separator"


@dataclass(frozen=True)
class Labels:
    """The labels of each image, in the order of the table, and how they were read.

    `separator` is what divides cells, a key of `SEPARATORS`; None where nothing does.
    """

    classes: tuple[str, ...]
    of_image: Mapping[str, frozenset[str]]
    separator: str | None
    notes: tuple[str, ...]


def read_labels(
    table: ImageTable, column: str | None, separator: str | None, known: Sequence[str] | None = None
) -> Labels:
    """Read the labels of a table.

    Args:
        column: the column or, with commas between them, the columns of 0 and 1 that are meant; None: those that there
            are, where there is one reading.
        separator: what divides the labels of a cell, a key of `SEPARATORS` or "none"; None: found, where it is sure.
        known: the labels of a trained model, whose columns of 0 and 1 have to be there; None in a training.

    Raises:
        UserError: several readings, with all of them and how to choose; a cell that is neither 0 nor 1; images of one
            label each, which are to classify.
    """
    chosen = _columns(table, column, known)
    alone = len(chosen) == 1 and _is_bits(table, chosen[0])
    if alone and column is None and known is None:
        raise UserError(
            f"{table.name}: two readings: 0 and 1 in column {chosen[0]} are two classes, which --task classify learns, "
            f"or say whether an image has the one label {chosen[0]}; for that add {LABEL_COLUMN} {chosen[0]}"
        )
    if len(chosen) > 1 or alone:
        found = _from_bits(table, chosen)
    else:
        found = _from_cells(table, chosen[0], separator, known or ())
    if not found.classes:
        raise UserError(f"{table.name}: no image has a label in {listed(chosen)}; fill them in")
    if known is None and column is None and separator is None and all(len(of) == 1 for of in found.of_image.values()):
        raise UserError(_one_each(table, chosen, found))
    return found


def _columns(table: ImageTable, column: str | None, known: Sequence[str] | None) -> list[str]:
    """Return the column of cells, or the columns of 0 and 1. Raises UserError where several may be meant."""
    if column is not None:
        return table.named(column, LABEL_COLUMN)
    titles = {composed(name): name for name in table.columns}
    if known is not None and len(known) > 1 and all(composed(name) in titles for name in known):
        return [titles[composed(name)] for name in known]
    bits = table.mostly(lambda cell: cell.lower() in BITS)
    usual = [name for name in table.columns if name.lower() in USUAL and name not in bits]
    missing = [name for name in known or () if composed(name) not in titles]
    if missing and bits and not usual:
        raise UserError(f"{table.name} has no column {missing[0]!r}, a label of the model; add it, of 0 and 1")
    if len(bits) > 1 and usual:
        raise UserError(
            f"{table.name}: two readings: the labels are in column {usual[0]}, or columns of 0 and 1 ({listed(bits)}) "
            f"are the labels; choose by {LABEL_COLUMN} {usual[0]} or {LABEL_COLUMN} {','.join(bits)}"
        )
    if len(bits) > 1:
        return bits
    candidates = usual or list(table.columns)
    if len(candidates) != 1:
        what = "no column of labels" if not candidates else "several columns that may be labels"
        which = ", ".join(f"{name} ({counted(len(set(table.values(name))), 'value')})" for name in candidates)
        raise UserError(f"{table.name} has {what}{f': {which}; choose by {LABEL_COLUMN}' if which else '; add one'}")
    return candidates


def _is_bits(table: ImageTable, column: str) -> bool:
    return all(cell.lower() in BITS for cell in table.values(column))


def _from_bits(table: ImageTable, columns: Sequence[str]) -> Labels:
    """Read a column of 0 and 1 for each label, in the order of the table."""
    of_image: dict[str, frozenset[str]] = {}
    for row in table.rows:
        odd = next((name for name in columns if row.cells[name].lower() not in BITS), None)
        if odd is not None:
            raise UserError(
                f"{row.place}: {odd} is {row.cells[odd]!r} and neither 0 nor 1; mend it, or name the columns of labels "
                f"by {LABEL_COLUMN} A,B,C"
            )
        if row.image in of_image:
            raise UserError(f"{row.place}: {row.image} is there twice; keep one")
        of_image[row.image] = frozenset(name for name in columns if BITS[row.cells[name].lower()])
    notes = [f"the labels are the columns {listed(columns, 8)}, of 0 and 1"]
    rest = [name for name in table.columns if name not in columns]
    notes += [f"columns that are no labels: {listed(rest, 8)} ({LABEL_COLUMN} names others)"] if rest else []
    return Labels(tuple(columns), of_image, None, tuple(notes))


def _from_cells(table: ImageTable, column: str, separator: str | None, known: Collection[str]) -> Labels:
    """Read cells of several labels each; an image may have several rows, with some of its labels in each."""
    cells = dict.fromkeys(table.values(column))
    for row in table.rows:
        if row.cells[column].lower() in NOT_LABELS:
            raise UserError(
                f"{row.place}: {column} is {row.cells[column]!r}, as programs write a missing value; leave it empty "
                "for an image without labels, or remove the row"
            )
    lists = {cell: parts for cell in cells if (parts := _as_list(cell)) is not None}
    texts = [cell for cell in cells if cell not in lists]
    if separator is None:
        separator = _fitting(texts, known) or _separator(table, column, texts)
    mark = None if separator in (None, ONE_LABEL) else SEPARATORS[separator]
    of_cell = {cell: _parts(cell, mark) for cell in texts} | lists
    of_image: defaultdict[str, frozenset[str]] = defaultdict(frozenset)
    for row in table.rows:
        of_image[row.image] |= {composed(part) for part in of_cell[row.cells[column]]}
    classes = tuple(sorted({name for of in of_image.values() for name in of}, key=natural_order))
    divided = f", divided by {separator}" if mark else ""
    notes = [f"the labels are in column {column}{divided}"]
    without = sum(not of for of in of_image.values())
    notes += [f"{counted(without, 'image')} without a label: an empty cell of {column}"] if without else []
    return Labels(classes, dict(of_image), separator if mark else None, tuple(notes))


def _as_list(cell: str) -> list[str] | None:
    """Return the labels of a list as JSON or Python writes it; None for another text."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    try:
        found = ast.literal_eval(cell)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(found, list) or not all(isinstance(part, (str, int)) for part in found):
        return None
    return [text for part in found if (text := str(part).strip())]


def _parts(cell: str, mark: str | None) -> list[str]:
    parts = [cell] if mark is None else cell.split(mark)
    return [text for part in parts if (text := part.strip())]


def _fitting(cells: Collection[str], known: Collection[str]) -> str | None:
    """Return the separator by which cells hold the labels of a trained model and no others; None where none does."""
    names = set(map(composed, known))
    ways = {ONE_LABEL: None, **SEPARATORS}
    fits = (
        way for way, mark in ways.items() if all(composed(p) in names for cell in cells for p in _parts(cell, mark))
    )
    return next(fits, None) if names else None


def _separator(table: ImageTable, column: str, cells: Collection[str]) -> str | None:
    """Return what divides the labels of cells where that is sure.

    A mark is one if labels recur between its marks: alone, or in other company. Spaces are in names too, so there every
    part has to stand alone as well, or there are fewer parts than different cells. Raises UserError where it is not
    sure.
    """
    present = [name for name in (";", "|", ",") if any(name in cell for cell in cells)]
    if not present and any(re.search(r"\s", cell) for cell in cells):
        parts = {part for cell in cells for part in cell.split()}
        if parts <= set(cells) or len(parts) < len(set(cells)):
            return "space"
        present = ["space"]
    elif len(present) == 1:
        every = [part for cell in cells for part in set(_parts(cell, SEPARATORS[present[0]]))]
        if len(set(every)) < len(every):
            return present[0]
    elif not present:
        return None
    example = next(cell for cell in cells if any(SEPARATORS[name] in cell for name in present) or " " in cell)
    ways = [f"{LABEL_SEPARATOR} {name!r} ({', '.join(_parts(example, SEPARATORS[name]))})" for name in present]
    raise UserError(
        f"{table.name}: {len(ways) + 1} readings of {example!r} in column {column}; choose by {', '.join(ways)} or "
        f"{LABEL_SEPARATOR} {ONE_LABEL} (one label)"
    )


def _one_each(table: ImageTable, columns: Sequence[str], found: Labels) -> str:
    """Return the refusal of images of one label each."""
    again = f"{LABEL_COLUMN} {','.join(columns)}"
    return (
        f"{table.name}: two readings: each image has exactly one of {counted(len(found.classes), 'label')} "
        f"({listed(found.classes)}), so they are classes, which --task classify learns; if images may have several or "
        f"none all the same, add {again}"
    )
