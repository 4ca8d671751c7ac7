"""The page of a run: what stands on it, that names are text, that nothing is loaded, and how large it gets."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from snella.pages.intervals import intervals, of_classes
from snella.pages.kept import KeptRun
from snella.pages.parts import Gallery, render
from snella.pages.run_page import run_page
from snella.pages.thumbnails import MOST
from snella.report.outputs import Outputs
from support.pages import class_outputs, kept, pictured

SCORES = {"top1": 0.7, "top5": 1.0, "balanced_accuracy": 0.69}


class Reader(HTMLParser):
    """Collects what a browser would see of a page: texts, tags with what they load, scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.handlers: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def data(self) -> dict:
        """What the page's script reads."""
        return json.loads(next(text for text in self.texts if text.startswith('{"charts"')))


def classified(folder: Path, count: int = 60, classes: int = 3, **rest) -> KeptRun:
    test, val = class_outputs(count, classes), class_outputs(40, classes, seed=1)
    names = rest.pop("names", [f"class {k}" for k in range(classes)])
    return kept(
        folder, "classify", names, {"test": test, "val": val}, metrics=SCORES, thumbnails=pictured(test), **rest
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(render(run_page(classified(tmp_path_factory.mktemp("run")), [])))


def test_scores_stand_with_their_intervals_and_without_a_top_5_that_says_nothing(page):
    text = " ".join(page.texts)
    found = class_outputs(60).values
    bounds = intervals(60, of_classes(found["logits"], found["labels"]))["top1"]
    assert f"{bounds.low:.1%} to {bounds.high:.1%}" in text
    assert "70.0%" in text
    assert "top-5" not in text


def test_top_5_stands_where_there_are_six_classes(tmp_path):
    assert "top-5" in render(run_page(classified(tmp_path, classes=6), []))


def test_every_cell_with_images_leads_to_them(page):
    galleries, cells = page.data["galleries"], page.data["charts"][0]["data"]["values"]
    assert sum(cell["count"] for cell in cells) == 60
    for cell in cells:
        assert (cell["cell"] in galleries) == (cell["count"] > 0)
    found = class_outputs(60).values
    wrong = np.flatnonzero((found["labels"] == 0) & (found["logits"].argmax(1) == 1))
    shown = galleries["0,1"]
    assert len(shown["shots"]) + shown["left_out"] == len(wrong)
    assert all(page.data["thumbnails"][shot["thumbnail"]].startswith("data:image/jpeg") for shot in shown["shots"])


def test_nothing_is_loaded_from_elsewhere(page):
    assert page.loaded
    assert [address for address in page.loaded if not address.startswith(("data:", "#"))] == []
    assert "link" not in page.tags
    assert "iframe" not in page.tags


def test_names_are_text_and_never_markup(tmp_path):
    bad = ["</script><script>alert(1)</script>", '" onload="alert(2)', "<img src=x onerror=alert(3)>"]
    test = class_outputs(9, names=[f"{bad[i % 3]}{i}\udcff.png" for i in range(9)])
    run = kept(tmp_path, "classify", bad, {"test": test}, metrics=SCORES, thumbnails=pictured(test))
    found, plain = Reader(render(run_page(run, [bad[0]]))), Reader(render(run_page(classified(tmp_path), ["a"])))
    assert found.tags.count("script") == plain.tags.count("script")
    assert found.handlers == []
    assert set(found.tags) <= set(plain.tags)
    assert bad[0] in found.texts
    assert found.data["galleries"]["0,0"]["title"].startswith(bad[0])


@pytest.mark.parametrize(("count", "classes"), [(20_000, 10), (5_000, 300)])
def test_a_page_of_many_images_or_classes_stays_small_and_says_what_it_leaves_out(tmp_path, count, classes):
    run = classified(tmp_path, count, classes)
    text = render(run_page(run, []))
    assert len(run.thumbnails.made) == MOST
    assert len(text) < 5_000_000
    assert f"Pictures of {MOST} of the {count:,} images" in text


def test_without_images_the_names_are_there(tmp_path):
    test = class_outputs(30)
    run = kept(tmp_path, "classify", ["a", "b", "c"], {"test": test}, metrics=SCORES)
    found = Reader(render(run_page(run, ["Pictures of the images are left out: photos is not there"])))
    assert found.data["thumbnails"] == []
    assert "Pictures of the images are left out: photos is not there" in found.texts
    assert any(test.names[0] in text for text in found.texts)


def test_the_surest_errors_stand_beside_their_heat_maps(tmp_path):
    asked = list[int]()

    def explain(picture: Image.Image, target: int) -> Image.Image:
        asked.append(target)
        return Image.new("RGB", picture.size, "red")

    run = replace(classified(tmp_path), explain=explain)
    page = run_page(run, [])
    (section,) = [found for found in page.sections if found.title == "What the most confident errors rest on"]
    (gallery,) = [part for part in section.parts if isinstance(part, Gallery)]
    logits, labels = (run.outputs["test"].values[name] for name in ("logits", "labels"))
    found, sure = logits.argmax(1), softmax(logits.astype(float), axis=1).max(1)
    wrong = sorted(np.flatnonzero(found != labels), key=lambda i: -sure[i])[:12]
    assert [shot.name for shot in gallery.shots] == [run.outputs["test"].names[i] for i in wrong]
    assert asked == [found[i] for i in wrong]
    for shot in gallery.shots:
        assert shot.thumbnail is not None
        with Image.open(io.BytesIO(base64.b64decode(page.thumbnails[shot.thumbnail].partition(",")[2]))) as picture:
            assert picture.width > 2 * picture.height
            assert picture.getpixel((picture.width - 10, 10))[0] > 200  # pyright: ignore[reportOptionalSubscript]
    assert 'class="shots wide"' in render(page)


def test_a_run_that_keeps_nothing_says_how_to_get_it(tmp_path):
    text = render(run_page(kept(tmp_path, "classify", ["a", "b"], {}, metrics=SCORES), []))
    assert f"snella evaluate {tmp_path} --split test" in text
    assert "70.0%" in text


def test_labels_have_their_average_precision_and_interval(tmp_path):
    random = np.random.default_rng(0)
    targets = (random.random((50, 2)) < 0.5).astype(np.uint8)
    outputs = Outputs(tuple(map(str, range(50))), {"probabilities": random.random((50, 2)), "targets": targets})
    metrics = {"map": 0.5, "f1_micro": 0.4, "f1_macro": 0.4}
    run = kept(
        tmp_path, "multilabel", ["red", "blue"], {"test": outputs}, metrics=metrics, about={"thresholds": [0.5, 0.5]}
    )
    text = render(run_page(run, []))
    assert "red: it is not there, and thought likely" in text
    assert len(re.findall(r"\d\d\.\d% to \d\d\.\d%", text)) >= 5


def test_quantities_have_a_scatter_and_their_largest_errors(tmp_path):
    random = np.random.default_rng(0)
    true = random.normal(size=(40, 1))
    outputs = Outputs(tuple(map(str, range(40))), {"predicted": true + 0.1, "true": true})
    row = {"name": "age", "count": 40, "mae": 0.1, "rmse": 0.1, "r2": 0.9}
    run = kept(
        tmp_path, "regress", ["age"], {"test": outputs}, about={"scales": [{"std": 1.0}]}, summary={"targets": [row]},
        metrics={"standardised_mae": 0.1, "mae": 0.1, "rmse": 0.1, "r2": 0.9},
    )  # fmt: skip
    found = Reader(render(run_page(run, [])))
    assert any(len(chart["data"]["values"]) == 40 for chart in found.data["charts"])
    assert "The largest errors" in found.texts
    assert found.texts.count("0.1 to 0.1") >= 2


def test_masks_have_an_interval_for_each_class(tmp_path):
    counts = np.random.default_rng(0).integers(1, 50, (20, 1, 2)) * np.array([2, 3, 3])[None, :, None]
    row = {"pixels": 9, "iou": 0.5, "dice": 0.66, "recall": 0.66, "precision": 0.66}
    run = kept(
        tmp_path, "segment", ["ground", "cell"], {"test": Outputs(tuple(map(str, range(20))), {"counts": counts})},
        metrics={"miou": 0.5, "mdice": 0.66, "pixel_accuracy": 0.66},
        summary={"classes": [{"name": n, **row} for n in ("g", "c")]},
    )  # fmt: skip
    assert "50.0% to 50.0%" in render(run_page(run, []))
