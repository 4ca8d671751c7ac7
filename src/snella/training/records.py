"""Files of one JSON object a line, and what a file system says when it is full."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snella.errors import UserError


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn a failure to write (disk full, read-only folder) into a UserError that names the folder."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}; "
            "make room or make it writable, then go on with --resume"
        ) from error


class Records:
    """A .jsonl file that grows by a row at a time, each on disk (flushed) before the next; `rows` counts them."""

    def __init__(self, path: Path, rows: int = 0) -> None:
        """Go on after the first `rows` rows; what stands behind them (a later, lost part of a run) is cut off."""
        self.path = path
        self.rows = 0
        with writing_to(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            end = 0
            with open(path, "a+b") as file:
                file.seek(0)
                for line in file:
                    if self.rows == rows or not line.endswith(b"\n"):
                        break
                    self.rows += 1
                    end += len(line)
                file.truncate(end)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row."""
        with writing_to(self.path.parent), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
        self.rows += 1

    def sync(self) -> None:
        """Wait until the rows are on the disk itself, as a checkpoint that counts them is."""
        if self.rows:
            with writing_to(self.path.parent), open(self.path, "ab") as file:
                os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All rows."""
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
