"""The page in a real browser, with real files: what is dropped is answered, and nothing is loaded from elsewhere.

`make test-app` runs it; it needs the extra app, the package playwright and a Chromium.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.browser import chromium
from support.served import Served

pytestmark = pytest.mark.slow
OURS = "#snella-answers"
SECONDS = 60_000  # milliseconds that an answer may take


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("gradio", reason='no gradio: pip install "snella[app]"')
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def served(browser, run: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    page = Served(tmp_path_factory.mktemp("served"), run, other, "--max-upload", 1)
    yield page
    page.stop()
    assert "Traceback" not in page.said


@pytest.fixture(scope="module")
def making(browser, generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    page = Served(tmp_path_factory.mktemp("making"), generator)
    yield page
    page.stop()
    assert "Traceback" not in page.said


class Tab:
    """A page in the browser; `wrong` collects errors, dialogs and what is asked of other machines."""

    def __init__(self, browser: Any, address: str, width: int, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.tab, self.wrong = self.context.new_page(), list[str]()
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.wrong.append(dialog.message))
        self.tab.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        ours = (address, "data:", "blob:")
        self.tab.on("request", lambda asked: self.wrong.append(asked.url) if not asked.url.startswith(ours) else None)
        self.tab.goto(address)

    def drop(self, *paths: Path | str) -> None:
        """Give files to the page, and wait for as many answers."""
        self.tab.set_input_files("input[type=file]", [str(path) for path in paths])
        self.tab.wait_for_function(
            f"document.querySelectorAll('{OURS} .card').length === {len(paths)}", timeout=SECONDS
        )

    def fits(self) -> bool:
        return self.tab.evaluate("document.documentElement.scrollWidth") <= self.tab.viewport_size["width"]


@pytest.fixture(params=[(390, "light"), (390, "dark"), (1100, "light")])
def opened(browser, served, request) -> Iterator[Tab]:
    page = Tab(browser, served.address, *request.param)
    yield page
    assert page.wrong == []
    page.context.close()


def test_dropped_images_are_answered_by_both_runs_and_fit_the_screen(opened, images, tmp_path):
    good, bad = next((images / "plain").iterdir()), tmp_path / "broken.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n")
    opened.drop(good, bad)
    assert opened.tab.locator(f"{OURS} .answer").count() == 2
    assert opened.tab.locator(f"{OURS} .answer .told .line").count() == 2
    assert opened.tab.locator(f"{OURS} .pictures img").count() == 2  # heat maps
    assert opened.tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert "This image cannot be read:" in opened.tab.inner_text(OURS)
    assert opened.fits()
    opened.tab.get_by_label("Show what speaks for the class").uncheck()
    opened.tab.wait_for_function(f"!document.querySelector('{OURS} .pictures')", timeout=SECONDS)


def test_names_are_shown_and_not_run(browser, served, images, tmp_path):
    page = Tab(browser, served.address, 1100)
    name = "<img src=x onerror=alert(5)>.png"
    shutil.copy(next((images / "plain").iterdir()), tmp_path / name)
    page.drop(tmp_path / name)
    text = page.tab.inner_text(OURS)
    assert "<img src=x onerror=alert(1)>" in text
    assert "${alert(2)}{{constructor}}@children" in text
    assert "<img src=x onerror=alert(1)>" in page.tab.inner_text("h1 + .runs")
    assert page.wrong == []


def test_a_file_that_is_too_large_is_refused_in_words(browser, served, tmp_path):
    page = Tab(browser, served.address, 1100)
    (tmp_path / "large.png").write_bytes(b"0" * 1_500_000)
    page.tab.set_input_files("input[type=file]", str(tmp_path / "large.png"))
    page.tab.get_by_text("exceed the maximum allowed size of 1").first.wait_for(timeout=SECONDS)
    assert page.tab.locator(f"{OURS} .card").count() == 0


def test_images_are_made_of_a_class_and_a_seed(browser, making):
    page = Tab(browser, making.address, 390)
    page.tab.get_by_role("button", name="Make images").click()
    page.tab.wait_for_selector(f"{OURS} .pictures img", timeout=SECONDS)
    assert "seed 0" in page.tab.inner_text(OURS)
    assert page.fits()
    assert page.wrong == []
