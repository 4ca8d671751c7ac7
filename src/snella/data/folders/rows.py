"""The rows of tables: CSV, and JSON lines."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from itertools import islice

from snella.errors import UserError, short_reason
from snella.json_files import RepeatedKeyError, load_json

Row = tuple[int, dict[str, object]]  # line number in the file, values by column


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
