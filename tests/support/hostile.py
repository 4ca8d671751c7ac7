"""Hostile inputs: what is made in an empty folder, the command that meets it, and what it must say."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snella.cli.main import main

Make = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """What is made in an empty folder, the command in it, its exit code, and what its output holds and does not."""

    make: Make
    command: str
    code: int
    said: tuple[str, ...]
    never: tuple[str, ...] = ()


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *os.fsencode(str(path))]).integers(0, 256, (size[1], size[0], 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def images(*names: str) -> Make:
    """Different pictures of these names."""

    def make(root: Path) -> None:
        for name in names:
            picture(root / name)

    return make


def folders(**counts: int) -> Make:
    """d/CLASS/0.png ..."""
    return images(*(f"d/{name}/{i}.png" for name, count in counts.items() for i in range(count)))


def together(*makes: Make) -> Make:
    def make(root: Path) -> None:
        for part in makes:
            part(root)

    return make


def text(name: str, content: str | bytes) -> Make:
    def make(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def table(*rows: tuple[str, ...], columns: str = "path,label") -> Make:
    """m.csv."""
    return text("m.csv", "\n".join([columns, *(",".join(row) for row in rows)]) + "\n")


def linked(name: str, target: str) -> Make:
    return lambda root: (root / name).symlink_to(target)


def pipe(name: str) -> Make:
    def make(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(root / name)

    return make


def check(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a case in an empty folder: its code, its line, no fault of ours, nothing written."""
    case.make(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    before = sorted(folder.rglob("*"))
    code = main(case.command.split(" "))
    shown = capsys.readouterr()
    said = shown.out + shown.err
    assert code == case.code, said
    for part in case.said:
        assert part in said
    for part in (*case.never, "fault in snella", "Traceback"):
        assert part not in said
    if code == 2:
        (line,) = shown.err.splitlines()
        assert len(line) <= 1_010
    assert sorted(folder.rglob("*")) == before
