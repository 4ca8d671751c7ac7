"""The look at every image before training."""

from __future__ import annotations

import os
from pathlib import Path

from snella.data import checks
from snella.data.checks import check_images
from snella.data.images import open_image
from support.broken_images import broken_files


def test_check_finds_exactly_what_opening_refuses(tmp_path: Path, picture, recwarn) -> None:
    broken = list(broken_files(tmp_path))
    good = [picture(tmp_path / "a.png"), picture(tmp_path / "b.jpg", (90, 70))]
    paths = [good[0], *(str(tmp_path / name) for name in broken), good[1]]
    calls: list[tuple[int, int]] = []
    found = check_images(paths, read=open_image, progress=lambda done, total: calls.append((done, total))).unreadable
    assert [os.path.basename(error.path) for error in found] == broken
    assert calls == [(i, len(paths)) for i in range(1, len(paths) + 1)]
    assert not recwarn.list


def test_above_the_limit_only_headers_are_read(tmp_path: Path, monkeypatch) -> None:
    broken_files(tmp_path)
    monkeypatch.setattr(checks, "CHECK_ALL", 1)
    monkeypatch.setattr(checks, "SAMPLED", 1)
    paths = [str(tmp_path / name) for name in ("wide.tif", "short.jpg", "empty.jpg")]
    found = check_images(paths, read=open_image, progress=None).unreadable
    assert [os.path.basename(error.path) for error in found] == ["wide.tif", "empty.jpg"]  # the first is read
