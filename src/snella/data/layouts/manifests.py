"""Manifests: a CSV or JSONL file with a row for each image.

Columns: `path` (or `image`, `file_name`), `label` (or `class`) and, if wanted, `split` (or `subset`, `fold`, `set`).
Paths are relative to the manifest. Labels are names; whole numbers are ordered by value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence

from snella.data.folders.choices import NO_CHOICE, Choices
from snella.data.folders.names import SPLIT_COLUMNS, SPLIT_NAMES
from snella.data.folders.rows import Row, column_names, read_table
from snella.data.groups import put_in_group
from snella.data.listing import Entry, Listing, label_entries
from snella.data.paths import is_text, same_file_key
from snella.errors import UserError, listed

PATH_COLUMNS = ("path", "image", "file_name")
LABEL_COLUMNS = ("label", "class")
SUFFIXES = (".csv", ".jsonl")
NOT_LABELS = ("nan", "null", "<na>", "nat")  # "none" and "n/a" may be classes: `readers.suspicions` asks
FILL_IN = "fill it in or remove the row"
BITS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}  # of one-hot columns


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
        name = _with_slashes(path, text_value(row, column, path, line))
        before, other = first.setdefault(same_file_key(os.path.join(os.path.dirname(path), name)), (line, name))
        if before != line and not repeated:
            as_what = "" if other == name else f" as {other}"
            raise UserError(f"{path} line {line}: {name} is already in line {before}{as_what}; remove one of the two")
        names.append(other)
    return names


def _with_slashes(path: str, name: str) -> str:
    """Return a name below the manifest's folder as paths are written here, where Windows has written it otherwise."""
    plain = name.replace("\\", "/")
    folder = os.path.dirname(path)
    return (
        plain
        if not os.path.exists(os.path.join(folder, name)) and os.path.exists(os.path.join(folder, plain))
        else name
    )


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
    if found.isascii() and found.isdecimal() and int(found) < len(columns) and found not in columns:
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
