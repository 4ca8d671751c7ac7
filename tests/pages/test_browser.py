"""A page in a real browser: nothing goes wrong, nothing is loaded, clicks show images, it fits a phone.

`make test-browser` runs it; it needs the package playwright and a Chromium, its own or the system's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snella.pages.parts import render
from snella.pages.run_page import run_page
from support.browser import chromium
from support.pages import class_outputs, kept, pictured

pytestmark = pytest.mark.slow
NAMES = ["</script><script>alert(1)</script>", '" onload="alert(2)', "<img src=x onerror=alert(3)>", "d", "e", "f", "g"]
LABELS = """
    [...document.querySelector('[data-chart="0"] .role-axis-label').children]
      .map(e => [e.getBoundingClientRect().x, e.textContent]).sort((a, b) => a[0] - b[0]).map(pair => pair[1])
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    test, val = class_outputs(200, len(NAMES)), class_outputs(80, len(NAMES), seed=1)
    scores = {"top1": 0.7, "top5": 0.9, "balanced_accuracy": 0.69}
    run = kept(folder, "classify", NAMES, {"test": test, "val": val}, metrics=scores, thumbnails=pictured(test))
    (folder / "report.html").write_text(render(run_page(run, [NAMES[0]])))
    return folder / "report.html"


@pytest.fixture(params=[(390, "light"), (390, "dark"), (1100, "light"), (1100, "dark")])
def opened(browser: Any, page: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab, said = context.new_page(), []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: said.append(dialog.message))
    tab.on("request", lambda asked: said.append(asked.url) if not asked.url.startswith(("file:", "data:")) else None)
    tab.goto(page.as_uri())
    tab.wait_for_selector("[data-chart='0'] .mark-rect path")
    yield tab
    assert said == []
    context.close()


def test_it_fits_the_screen_and_follows_light_and_dark(opened):
    assert opened.evaluate("document.documentElement.scrollWidth") <= opened.viewport_size["width"]
    dark = opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    colour = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
    charts = opened.evaluate("document.querySelectorAll('[data-chart]').length")
    assert opened.evaluate("document.querySelectorAll('[data-chart] svg').length") == charts > 2


def test_a_click_on_a_cell_or_a_row_shows_its_images(opened):
    counts = opened.locator("[data-chart='0'] .mark-text.role-mark text")
    texts = counts.all_text_contents()
    wanted = next(i for i, text in enumerate(texts) if text)
    counts.nth(wanted).click(force=True)
    opened.wait_for_selector(".clicked img")
    assert f": {texts[wanted]} image" in opened.inner_text(".clicked")
    opened.locator(".shows").first.click()
    assert "taken for" in opened.inner_text(".clicked")
    assert opened.evaluate("[...document.images].every(i => !i.src || i.naturalWidth)")


def test_classes_and_tables_are_put_into_another_order(opened):
    before = opened.evaluate(LABELS)
    opened.locator(".vega-bindings select").select_option("name")
    opened.wait_for_timeout(500)
    assert opened.evaluate(LABELS) != before
    head = opened.locator("#s6 th button", has_text="recall")
    head.click()
    values = opened.evaluate("[...document.querySelectorAll('#s6 tbody tr')].map(r => +r.cells[2].dataset.value)")
    assert values == sorted(values, reverse=True)
    head.click()
    values = opened.evaluate("[...document.querySelectorAll('#s6 tbody tr')].map(r => +r.cells[2].dataset.value)")
    assert values == sorted(values)
