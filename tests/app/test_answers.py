"""What the page says, without Gradio: against `snella predict`, scipy and the files themselves."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax

from snella.app.answers import MOST_IMAGES, Answer, Bar, answer_images, answer_prompt, as_html, open_runs
from snella.cli.main import main
from snella.errors import UserError
from snella.pages.calibration import fitted_temperature
from snella.report.outputs import read_outputs, write_outputs
from support.broken_images import broken_files
from support.pages import class_outputs
from support.runs import train


class Reader(HTMLParser):
    """Collects the tags, texts and handlers of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.texts, self.handlers = list[str](), list[str](), list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def one(runs, path: Path | str, *, heat: bool = False) -> Answer:
    ((found,), notes) = answer_images(runs, [str(path)], heat=heat)
    assert notes == []
    return found.answers[0]


def shares(answer: Answer) -> dict[str, float]:
    return {bar.name: bar.share for bar in answer.bars if bar.share is not None}


def picture_of(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def predicted(capsys, run: Path, path: Path) -> dict:
    capsys.readouterr()
    assert main(["predict", str(run), str(path), "--json", "--device", "cpu"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    return row


def test_probabilities_are_those_of_the_logits_at_the_temperature_of_val(run, images, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    val, test = class_outputs(100), read_outputs(run, "test")  # some of val are told wrong
    write_outputs(copy, "val", val.names, {name: torch.from_numpy(value) for name, value in val.values.items()})
    (shown,) = open_runs([copy], "cpu")
    assert test is not None
    temperature = fitted_temperature(val.values["logits"], val.values["labels"])
    assert f"{temperature:.3g}" in shown.notes[0]
    classes = shown.run.saved["classes"]
    for name, logits in zip(test.names, test.values["logits"], strict=True):
        expected = softmax(logits.astype(float) / temperature)
        found = shares(one([shown], images / name))
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert [found[k] for k in classes] == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_val_that_is_told_right_throughout_calibrates_nothing(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    logits = torch.eye(3).repeat(4, 1)
    write_outputs(copy, "val", [str(i) for i in range(12)], {"logits": logits, "labels": logits.argmax(1)})
    (shown,) = open_runs([copy], "cpu")
    assert shown.temperature is None
    assert "no error on val" in shown.notes[0]


def test_a_run_that_keeps_nothing_of_val_says_so(run, images, tmp_path, capsys):
    bare = Path(shutil.copytree(run, tmp_path / "bare"))
    shutil.rmtree(bare / "outputs")
    runs = open_runs([bare], "cpu")
    assert "as the model gives them" in runs[0].notes[0]
    path = next(images.rglob("*.png"))
    assert shares(one(runs, path)) == pytest.approx(predicted(capsys, bare, path)["probabilities"])


# Another reading of the files would show other probabilities than `snella predict`.
def test_images_are_read_as_predict_reads_them(run, images, tmp_path, capsys):
    bare = Path(shutil.copytree(run, tmp_path / "bare"))
    shutil.rmtree(bare / "outputs")  # so that no temperature is between the two
    runs = open_runs([bare], "cpu")
    with Image.open(next((images / "plain").iterdir())) as opened:
        plain = opened.convert("RGB").resize((64, 40))
    turned = Image.Exif()
    turned[0x0112] = 6
    plain.save(tmp_path / "turned.jpg", exif=turned)
    plain.putalpha(Image.linear_gradient("L").resize(plain.size))
    plain.save(tmp_path / "clear.png")
    grey = np.random.default_rng(0).integers(0, 65_535, (50, 40)).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "wide.png")
    for name in ("turned.jpg", "clear.png", "wide.png"):
        assert shares(one(runs, tmp_path / name)) == pytest.approx(
            predicted(capsys, bare, tmp_path / name)["probabilities"], abs=1e-6
        )
    ((found,), _) = answer_images(runs, [str(tmp_path / "turned.jpg")], heat=False)
    assert picture_of(found.picture).size == (40, 64)


def test_16_bits_that_the_run_has_no_use_for_are_said_by_name(run, tmp_path):
    runs = open_runs([run], "cpu")
    Image.fromarray(np.full((50, 40), 900, np.uint16)).save(tmp_path / "dark.png")
    (_, notes) = answer_images(runs, [str(tmp_path / "dark.png")], heat=False)
    assert len(notes) == 1
    assert "16-bit greys" in notes[0]
    assert str(tmp_path) not in notes[0]


def test_broken_images_are_answered_in_words_beside_the_others(run, images, tmp_path):
    runs = open_runs([run], "cpu")
    reasons = broken_files(tmp_path)
    paths = [str(tmp_path / name) for name in reasons] + [str(next(images.rglob("*.png")))]
    answered, _ = answer_images(runs, paths, heat=True)
    for found, reason in zip(answered, reasons.values(), strict=False):
        assert reason in found.problem
        assert str(tmp_path) not in found.problem
        assert found.answers == ()
    assert answered[-1].answers[0].bars
    text = as_html("answers.html", answered=answered, notes=[], runs=runs)
    assert text.count("This image cannot be read") == len(reasons)


def test_two_runs_answer_side_by_side_each_with_its_own(run, other, images):
    runs = open_runs([run, other], "cpu")
    path = next(images.rglob("*.png"))
    ((found,), _) = answer_images(runs, [str(path)], heat=False)
    assert [shares(a) for a in found.answers] == [shares(one([shown], path)) for shown in runs]
    assert shares(found.answers[0]) != shares(found.answers[1])
    text = Reader(as_html("answers.html", answered=[found], notes=[], runs=runs)).texts
    assert text.index("run") < text.index("other")


def test_no_more_images_than_a_page_holds_are_answered(run, images):
    runs = open_runs([run], "cpu")
    paths = [str(path) for path in sorted(images.rglob("*.png"))]
    answered, notes = answer_images(runs, paths, heat=False)
    assert len(answered) == MOST_IMAGES
    assert notes == [f"The first {MOST_IMAGES} of {len(paths)} images."]


@pytest.mark.skipif(find_spec("captum") is None, reason="no captum: pip install 'snella[explain]'")
def test_a_heat_map_is_that_of_the_likeliest_class(run, images):
    runs = open_runs([run], "cpu")
    path = next(images.rglob("*.png"))
    assert one(runs, path).pictures == []
    answer = one(runs, path, heat=True)
    ((label, uri),) = answer.pictures
    assert label == f"what speaks for {answer.bars[0].name}"
    assert picture_of(uri).size == (180, 200)  # 36 x 40, enlarged
    assert runs[0].explain is not None


def test_masks_are_shown_over_the_image_with_their_shares(segmenter, place, capsys):
    runs = open_runs([segmenter], "cpu")
    path = place / "masked" / "images" / "3.png"
    areas = predicted(capsys, segmenter, path)["areas"]
    answer = one(runs, path)
    assert shares(answer) == pytest.approx({name: a["share"] for name, a in areas.items() if a["pixels"]})
    assert [label for label, _ in answer.pictures] == ["overlay"]
    assert all(bar.colour.startswith("rgb(") for bar in answer.bars)


def test_values_and_labels_are_shown(images, tmp_path, capsys):
    paths = sorted(images.rglob("*.png"))
    (tmp_path / "sizes.csv").write_text("\n".join(["path,size", *(f'"{path}",{i}' for i, path in enumerate(paths))]))
    flags = ["--task", "regress", "--target-column", "size", "--epochs", "1"]
    assert train(tmp_path / "sizes.csv", tmp_path / "sizes", *flags) == 0
    labels = [f'"{path}",{"red" if i % 2 else "blue"}' for i, path in enumerate(paths)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *labels]))
    assert train(tmp_path / "labels.csv", tmp_path / "labels", "--task", "multilabel", "--label-column", "label") == 0
    runs = open_runs([tmp_path / "sizes", tmp_path / "labels"], "cpu")
    ((found,), _) = answer_images(runs, [str(paths[0])], heat=False)
    value = predicted(capsys, tmp_path / "sizes", paths[0])["values"]["size"]
    assert found.answers[0].bars == [Bar("size", f"{value:.4g}")]
    row = predicted(capsys, tmp_path / "labels", paths[0])
    assert shares(found.answers[1]) == pytest.approx(row["probabilities"])
    assert {bar.name for bar in found.answers[1].bars if bar.told} == set(row["labels"])


def test_images_are_made_as_predict_makes_them(generator, tmp_path):
    runs = open_runs([generator], "cpu")
    (found,) = answer_prompt(runs, "cat", 3, 2)
    flags = ["--prompt", "cat", "--n", "2", "--seed", "3", "--pictures", str(tmp_path / "made"), "--device", "cpu"]
    assert main(["predict", str(generator), *flags]) == 0
    for seed, (label, uri) in zip((3, 4), found.answers[0].pictures, strict=True):
        assert label == f"seed {seed}"
        with Image.open(tmp_path / "made" / f"cat-{seed}.png") as expected:
            assert np.asarray(picture_of(uri)).tolist() == np.asarray(expected).tolist()
    (refused,) = answer_prompt(runs, "horse", 0, 1)
    assert "none of the run's classes: cat, dog" in refused.answers[0].problem


def test_runs_that_make_images_stand_on_a_page_of_their_own(run, generator):
    with pytest.raises(UserError, match="on a page each"):
        open_runs([run, generator], "cpu")


def test_names_are_text_and_never_markup(run, images, tmp_path):
    name = "<script>alert(4)<%2Fscript>\udcff.png"
    shutil.copy(next(images.rglob("*.png")), os.path.join(tmp_path, name))
    runs = open_runs([run], "cpu")
    answered, _ = answer_images(runs, [str(tmp_path / name)], heat=False)
    for page in (
        as_html("answers.html", answered=answered, notes=["<b>"], runs=[*runs, *runs]),
        as_html("head.html", runs=runs),
    ):
        found = Reader(page)
        assert found.handlers == []
        assert {"script", "b"}.isdisjoint(found.tags)
        assert any("onerror=alert(1)" in text for text in found.texts)
