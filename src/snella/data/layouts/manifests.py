"""Manifests: a CSV or JSONL file with a row for each image.

Columns: `path` (or `image`, `file_name`), `label` (or `class`) and, if wanted, `split` (or `subset`, `fold`, `set`).
Paths are relative to the manifest. Labels are names; whole numbers are ordered by value.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice

from snella.data.folders.choices import NO_CHOICE, Choices
from snella.data.folders.names import SPLIT_NAMES
from snella.data.groups import put_in_group
from snella.data.listing import Entry, Listing, label_entries
from snella.data.paths import is_text, same_file_key
from snella.errors import UserError, listed, short_reason
from snella.json_files import RepeatedKeyError, load_json

PATH_COLUMNS = ("path", "image", "file_name")
LABEL_COLUMNS = ("label", "class")
SPLIT_COLUMNS = ("split", "subset", "fold", "set", "partition")
SUFFIXES = (".csv", ".jsonl")
NOT_LABELS = ("nan", "null", "<na>", "nat")  # "none" and "n/a" may be classes: `readers.suspicions` asks
FILL_IN = "fill it in or remove the row"
BITS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}  # of one-hot columns

Row = tuple[int, dict[str, object]]  # line number in the file, values by column


def is_manifest(path: str) -> bool:
    """Tell whether a path is a file with the ending of a manifest."""
    return path.lower().endswith(SUFFIXES) and os.path.exists(path) and not os.path.isdir(path)


def manifest(path: str, choices: Choices = NO_CHOICE) -> Listing:
    """List the images that a manifest names.

    Raises:
        UserError: not a manifest, missing or duplicate columns, an incomplete row, an image named twice, an unknown
            split, a negative label.
    """
    rows = read_table(path)
    columns = column_names(rows)
    group_column = named_column("group_column", choices.group_column, columns, path)
    image_column = find_column(PATH_COLUMNS, columns, path, "image paths")
    names = image_names(path, rows, image_column)
    others = [name for name in columns if name not in (image_column, group_column)]
    bits = joined_bits(others, [row for _, row in rows])
    joined = choices.label_column is None and not set(LABEL_COLUMNS) & set(columns) and bool(bits)
    if joined:
        written = {name.lower(): name for name in column_names(read_table(path, first=True, as_written=True))}
        bits = [name for name in written if name in bits]
        labels = [written[class_of_bits(row, bits, f"{path} line {line}")] for line, row in rows]
    else:
        label_column = _label_column(columns, path, choices)
        labels = [_label(row, label_column, path, line) for line, row in rows]
        if choices.label_column is None:
            check_single(path, set(labels), label_column)
    groups = groups_of(path, rows, names, group_column) if group_column else {}
    classes, entries = label_entries(names, labels)
    splits = {"all": entries}
    column = split_column(rows)
    if column:
        splits = _by_split(path, rows, entries, column)
    notes = (f"the classes are the columns {listed(bits, 5)} of 0 and 1, each image in one",) if joined else ()
    return Listing("manifest", os.path.dirname(path), classes, splits, notes=notes, groups=groups)


def image_names(path: str, rows: Sequence[Row], column: str, *, repeated: bool = False) -> list[str]:
    """Return what each row calls its image.

    Raises:
        UserError: a row without it, two rows of one image unless they may be `repeated`.
    """
    names: list[str] = []
    first: dict[object, tuple[int, str]] = {}  # a file -> the line that names it, and how
    for line, row in rows:
        name = text_value(row, column, path, line)
        before, other = first.setdefault(same_file_key(os.path.join(os.path.dirname(path), name)), (line, name))
        if before != line and not repeated:
            as_what = "" if other == name else f" as {other}"
            raise UserError(f"{path} line {line}: {name} is already in line {before}{as_what}; remove one of the two")
        names.append(other)
    return names


def groups_of(path: str, rows: Sequence[Row], names: Sequence[str], column: str) -> dict[str, str]:
    """Return the group of each image, by its name, that a column says.

    Raises:
        UserError: a row without it, an image of two groups.
    """
    groups: dict[str, str] = {}
    for name, (line, row) in zip(names, rows, strict=True):
        put_in_group(groups, name, text_value(row, column, path, line), f"{path} line {line}", name)
    return groups


def bit_columns(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the columns of 0 and 1 alone, as tables have them that are called one-hot."""
    usual = [name for name in columns if name.lower() not in SPLIT_COLUMNS]
    return [name for name in usual if rows and all(str(row.get(name)).strip().lower() in BITS for row in rows)]


def joined_bits(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return the columns of 0 and 1, two or more, that say the class together; none where another column may say it.

    Numbers, and what is different in each row, say none.
    """
    bits = bit_columns(columns, rows)
    for name in columns:
        values = [str(row.get(name, "")).strip() for row in rows]
        numbers = all(re.fullmatch(r"[-+\d.eE]*", value) for value in values)
        if name not in bits and name.lower() not in SPLIT_COLUMNS and not numbers and len(set(values)) < len(values):
            return []
    return bits if len(bits) > 1 else []


def class_of_bits(row: Mapping[str, object], columns: Sequence[str], place: str) -> str:
    """Return the one column of a row that holds 1. Raises UserError where that is none or several."""
    ones = [name for name in columns if BITS[str(row[name]).strip().lower()]]
    if len(ones) != 1:
        has = listed(ones) if ones else "none"
        raise UserError(
            f"{place}: of the columns of 0 and 1 ({listed(columns)}) it has {has}, which is not one class; add --task "
            "multilabel for images of any number of labels, or --label-column for a column of classes"
        )
    return ones[0]


def check_single(place: str, values: Collection[str], column: str) -> None:
    """Refuse labels that are put together of others, as those of images of several classes are: "cat dog"."""
    for value in sorted(values):
        parts = [part for part in re.split(r"[\s,;|]+", value) if part]
        if len(parts) > 1 and set(values).issuperset(parts):
            raise UserError(
                f"{place}: two readings: the label {value!r} is a class, or means {len(parts)} classes of one image; "
                f"for the first add --label-column {column}, for the second --task multilabel"
            )


def read_table(path: str, *, first: bool = False, as_written: bool = False) -> list[Row]:
    """Read all rows of a CSV or JSONL file, or the first alone; titles of CSV in lower case, unless `as_written`.

    Raises:
        UserError: not UTF-8, not CSV or JSONL, no row.
    """
    if not os.path.isfile(path):  # to open a pipe would wait for ever
        raise UserError(f"{path} is not a file; give a CSV or JSONL file")
    rows = _csv_rows(path, as_written) if path.lower().endswith(".csv") else _jsonl_rows(path)
    try:
        found = list(islice(rows, 1 if first else None))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file: {error}") from None
    if not found:
        raise UserError(f"{path} has no rows; expected a row for each image")
    return found


def column_names(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for _, row in rows for name in row))


def split_column(rows: list[Row]) -> str | None:
    """Return the column that says the split: `split`, or one of its other names that holds nothing else."""
    columns = column_names(rows)
    if SPLIT_COLUMNS[0] in columns:
        return SPLIT_COLUMNS[0]
    others = (name for name in SPLIT_COLUMNS if name in columns)
    return next((name for name in others if all(str(row.get(name)).lower() in SPLIT_NAMES for _, row in rows)), None)


def _label_column(columns: Sequence[str], path: str, choices: Choices) -> str:
    return named_column("label_column", choices.label_column, columns, path) or find_column(
        LABEL_COLUMNS, columns, path, "labels"
    )


def named_column(setting: str, wanted: str | None, columns: Sequence[str], path: str) -> str | None:
    """Return the column that a user names, or numbers from 0; None where none is wanted. Raises UserError."""
    if wanted is None:
        return None
    found = wanted.lower()
    if found.isdecimal() and int(found) < len(columns) and found not in columns:
        return columns[int(found)]
    if found not in columns:
        flag = f"--{setting.replace('_', '-')}"
        raise UserError(f"{flag} {found}: {path} has the columns {', '.join(columns)}; name one")
    return found


def _by_split(path: str, rows: list[Row], entries: list[Entry], column: str) -> dict[str, list[Entry]]:
    splits: dict[str, list[Entry]] = {}
    for (line, row), entry in zip(rows, entries, strict=True):
        splits.setdefault(split_value(row, path, line, column), []).append(entry)
    return splits


def split_value(row: dict[str, object], path: str, line: int, column: str) -> str:
    value = text_value(row, column, path, line)
    if value.lower() not in SPLIT_NAMES:
        raise UserError(f"{path} line {line}: {column} is {value!r}; use train, val or test")
    return SPLIT_NAMES[value.lower()]


def _label(row: dict[str, object], column: str, path: str, line: int) -> str:
    label = text_value(row, column, path, line).strip()
    if not label:
        raise UserError(f"{path} line {line}: {column} is blank; {FILL_IN}")
    if label.lower() in NOT_LABELS:
        raise UserError(f"{path} line {line}: {column} is {label!r}, as programs write a missing value; {FILL_IN}")
    if label.startswith("-") and label[1:].isdecimal():
        raise UserError(f"{path} line {line}: label {label} is out of range; number the classes from 0, or name them")
    return label


def text_value(row: dict[str, object], column: str, path: str, line: int) -> str:
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is None or value == "":
        raise UserError(f"{path} line {line}: {column} is missing; {FILL_IN}")
    if not isinstance(value, str):
        several = ", or add --task multilabel" if isinstance(value, list) else ""
        raise UserError(f"{path} line {line}: {column} is {value!r}; write a text or a whole number{several}")
    if not is_text(value):
        raise UserError(f"{path} line {line}: {column} is {value!a}, which is not text; mend it")
    return value


def find_column(accepted: Sequence[str], columns: Sequence[str], path: str, what: str) -> str:
    present = [name for name in accepted if name in columns]
    if len(present) > 1:
        raise UserError(f"{path} has {len(present)} columns for the {what}: {', '.join(present)}; keep one")
    if not present:
        raise UserError(
            f"{path} has no column for the {what}: name it {' or '.join(accepted)} (found: {', '.join(columns)})"
        )
    return present[0]


def _csv_rows(path: str, as_written: bool) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets write a byte-order mark
        reader = csv.reader(file, strict=True)
        header = [name.strip() if as_written else name.strip().lower() for name in next(reader, [])]
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
                row = load_json(text)
            except RepeatedKeyError as error:
                raise UserError(f"{path} line {line}: {error}; keep one") from None
            except ValueError as error:
                raise UserError(
                    f"{path} line {line}: not JSON ({short_reason(error)}); write one object a line"
                ) from None
            if not isinstance(row, dict):
                raise UserError(f'{path} line {line}: not an object; write {{"COLUMN": VALUE, ...}}')
            yield line, row
