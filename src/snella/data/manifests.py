"""Manifests: a CSV or JSONL file with a row for each image.

Columns: `path` (or `image`, `file_name`), `label` (or `class`) and, if wanted, `split`. Paths are relative to the
manifest. Labels are names; whole numbers are ordered by value.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence

from snella.data.dataset import Entry, Listing, labelled
from snella.data.folders import SPLIT_NAMES
from snella.errors import UserError

PATH_COLUMNS = ("path", "image", "file_name")
LABEL_COLUMNS = ("label", "class")
SUFFIXES = (".csv", ".jsonl")

Row = tuple[int, dict[str, object]]  # line number in the file, values by column


def manifest(path: str) -> Listing:
    """Read a manifest.

    Raises:
        UserError: not a manifest, missing or duplicate columns, an incomplete row, an image named twice, an unknown
            split, a negative label.
    """
    try:
        rows = list(_csv_rows(path) if path.lower().endswith(".csv") else _jsonl_rows(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file: {error}") from None
    if not rows:
        raise UserError(f"{path} has no rows; expected a row for each image")
    return _listing(path, rows)


def _listing(path: str, rows: list[Row]) -> Listing:
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    image_column = _one_of(PATH_COLUMNS, columns, path, "image paths")
    label_column = _one_of(LABEL_COLUMNS, columns, path, "labels")
    names: list[str] = []
    labels: list[str] = []
    line_of: dict[str, int] = {}
    for line, row in rows:
        name = _text(row, image_column, path, line)
        if name in line_of:
            raise UserError(f"{path} line {line}: {name} is already in line {line_of[name]}; remove one of the two")
        line_of[name] = line
        names.append(name)
        labels.append(_label(row, label_column, path, line))
    classes, entries = labelled(names, labels)
    splits = {"all": entries}
    if "split" in columns:
        splits = _by_split(path, rows, entries)
    return Listing("manifest", os.path.dirname(path), classes, splits)


def _by_split(path: str, rows: list[Row], entries: list[Entry]) -> dict[str, list[Entry]]:
    splits: dict[str, list[Entry]] = {}
    for (line, row), entry in zip(rows, entries, strict=True):
        value = _text(row, "split", path, line)
        if value.lower() not in SPLIT_NAMES:
            raise UserError(f"{path} line {line}: split is {value!r}; use train, val or test")
        splits.setdefault(SPLIT_NAMES[value.lower()], []).append(entry)
    return splits


def _label(row: dict[str, object], column: str, path: str, line: int) -> str:
    label = _text(row, column, path, line)
    if label.startswith("-") and label[1:].isdecimal():
        raise UserError(f"{path} line {line}: label {label} is out of range; number the classes from 0, or name them")
    return label


def _text(row: dict[str, object], column: str, path: str, line: int) -> str:
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is None or value == "":
        raise UserError(f"{path} line {line}: {column} is missing; fill it in or remove the row")
    if not isinstance(value, str):
        raise UserError(f"{path} line {line}: {column} is {value!r}; write a text or a whole number")
    return value


def _one_of(accepted: Sequence[str], columns: Sequence[str], path: str, what: str) -> str:
    present = [name for name in accepted if name in columns]
    if len(present) > 1:
        raise UserError(f"{path} has {len(present)} columns for the {what}: {', '.join(present)}; keep one")
    if not present:
        raise UserError(
            f"{path} has no column for the {what}: name it {' or '.join(accepted)} (found: {', '.join(columns)})"
        )
    return present[0]


def _csv_rows(path: str) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets write a byte-order mark
        reader = csv.reader(file, strict=True)
        header = [name.strip().lower() for name in next(reader, [])]
        if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
            raise UserError(f"{path} does not separate its columns by commas; save it with commas")
        repeated = next((name for name in header if header.count(name) > 1), None)
        if repeated is not None:
            raise UserError(f"{path} has two columns named {repeated!r}; keep one")
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise UserError(
                    f"{path} line {reader.line_num}: {len(values)} values for {len(header)} columns; "
                    "put values that hold a comma in double quotes"
                )
            yield reader.line_num, dict(zip(header, (value.strip() for value in values), strict=True))


def _jsonl_rows(path: str) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise UserError(f"{path} line {line}: not JSON ({error.msg}); write one object a line") from None
            if not isinstance(row, dict):
                raise UserError(f'{path} line {line}: not an object; write {{"path": ..., "label": ...}}')
            yield line, row
