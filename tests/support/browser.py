"""A real browser for tests of pages, or the reason why there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def chromium() -> Iterator[Any]:
    """Give a headless Chromium, the system's or playwright's own; skip the test where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no browser: pip install playwright")
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    with sync_api.sync_playwright() as started:
        try:
            opened = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except sync_api.Error:
            pytest.skip("no browser: playwright install chromium, or install the system's")
        yield opened
        opened.close()
