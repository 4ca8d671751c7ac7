"""Hostile names and files among those to predict: the row that is written is right, or a line says what is wrong."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snella.cli.main import main
from support.broken_images import png_header
from support.masked_runs import write_pairs
from support.runs import train

NAMES = ("image", "text", "probability")  # as in conftest.py


def picture(path: Path, shade: int = 60) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(shade).integers(0, 90, (40, 36, 3))
    pixels[..., 0] += shade
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return str(path)


def predicted(capsys: pytest.CaptureFixture[str], *args: object) -> list[dict[str, str]]:
    """The rows that `predict --csv` prints."""
    capsys.readouterr()
    assert main(["predict", *map(str, args), "--csv", "--device", "cpu"]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


# The class's probability stood in the image's column, and the path was gone.
def test_classes_that_are_called_like_columns_keep_them(run: Path, tmp_path: Path, capsys) -> None:
    path = picture(tmp_path / "a.png")
    (row,) = predicted(capsys, run, path)
    assert row.keys() == {
        "image",
        "class",
        "probability",
        *(f"probability:{n}" for n in ("image", "text", "probability")),
    }
    assert row["image"] == path
    assert row["class"] in ("image", "text", "probability")
    assert float(row["probability"]) == max(float(row[f"probability:{n}"]) for n in ("image", "text", "probability"))


def test_areas_of_classes_that_are_called_like_columns(segmenter: Path, tmp_path: Path, capsys) -> None:
    path = picture(tmp_path / "a.png")
    (row,) = predicted(capsys, segmenter, path, "--pictures", tmp_path / "out")
    assert (row["image"], row["width"], row["mask"]) == (path, "36", str(tmp_path / "out" / "a-mask.png"))
    assert sum(int(row[f"pixels:{name}"]) for name in ("sky", "mask", "width")) == 36 * 40


# A spreadsheet runs a cell that begins with one of these.
@pytest.mark.parametrize("name", ["=1+1.png", "+1.png", "-1.png", "@SUM(A1).png"])
def test_a_name_is_no_formula(name: str, run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    picture(Path(name))
    (row,) = predicted(capsys, run, "--", name) if name.startswith("-") else predicted(capsys, run, name)
    assert row["image"] == f"'{name}"


# A file named twice gave one row.
def test_each_name_has_its_row(run: Path, tmp_path: Path, capsys) -> None:
    a, b = picture(tmp_path / "d" / "a.png"), picture(tmp_path / "d" / "b.png", 90)
    assert [row["image"] for row in predicted(capsys, run, b, a, a, tmp_path / "d")] == [b, a, a, a, b]


# The later of two images of one name lost the first one's mask.
def test_images_of_one_name_have_masks_of_their_own(segmenter: Path, tmp_path: Path, capsys) -> None:
    first, second = picture(tmp_path / "1" / "a.png"), picture(tmp_path / "2" / "a.png", 90)
    masks = [row["mask"] for path in (first, second, first) for row in predicted(capsys, segmenter, path)]
    assert masks[0] == masks[2] != masks[1]
    assert all(Path(mask).is_file() for mask in masks)
    together = predicted(capsys, segmenter, first, second, "--pictures", tmp_path / "out")
    assert len({row["mask"] for row in together}) == 2


# A name as long as the system allows ended the whole prediction when "-mask" came to it.
def test_a_name_as_long_as_can_be(segmenter: Path, tmp_path: Path, capsys) -> None:
    paths = [picture(tmp_path / f"{'n' * 245}{i}.png") for i in range(2)]
    rows = predicted(capsys, segmenter, *paths, "--pictures", tmp_path / "out")
    assert [row["image"] for row in rows] == paths
    assert len({row["mask"] for row in rows}) == 2
    assert all(Path(row["mask"]).is_file() for row in rows)


# Pillow's own warning came with two lines of its source.
def test_an_image_that_is_too_large_is_one_line(run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "large.png").write_bytes(png_header(12_000, 9_000))
    paths = [str(tmp_path / "large.png"), picture(tmp_path / "a.png")]
    assert main(["predict", str(run), *paths, "--json"]) == 1
    said = "12000 x 9000 pixels; shrink it below 100 megapixels"
    assert capsys.readouterr().err == f"snella: not predicted: {paths[0]}: {said}\n"


# Values of 12 bits in files of 16 reached the model as 0 to 15 of 255.
def test_values_of_12_bits_are_said(run: Path, tmp_path: Path, capsys) -> None:
    values = np.random.default_rng(0).integers(0, 4_000, (40, 36)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "wide.png")
    Image.fromarray((values * 255 // 4095).astype(np.uint8)).save(tmp_path / "narrow.png")
    assert main(["predict", str(run), str(tmp_path / "wide.png"), str(tmp_path / "narrow.png"), "--json"]) == 0
    shown = capsys.readouterr()
    wide, narrow = json.loads(shown.out)
    assert wide["probability"] == pytest.approx(narrow["probability"], abs=0.02)
    assert "1 images of 16-bit greys: 4095 is taken for white" in shown.err


def test_a_run_reads_other_images_by_the_range_of_its_own(tmp_path: Path, capsys) -> None:
    for i in range(16):
        (tmp_path / "d" / "xy"[i % 2]).mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(i).integers(0, 2_000, (20, 20)) + 2_000 * (i % 2)
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / "d" / "xy"[i % 2] / f"{i}.png")
    run = tmp_path / "run"
    assert train(tmp_path / "d", run, "--method", "linear", "--epochs", "1") == 0
    assert "use 12 of 16 bits (values up to 3999): 4095 is taken for white" in capsys.readouterr().out
    assert json.loads((run / "adapter" / "snella.json").read_text())["white"] == 4095
    darker = np.full((20, 20), 500, np.uint16)  # alone it would use 10 bits
    Image.fromarray(darker).save(tmp_path / "dark.png")
    Image.fromarray((darker.astype(int) * 255 // 4095).astype(np.uint8)).save(tmp_path / "dark8.png")
    Image.fromarray(darker * 60).save(tmp_path / "wide.png")
    capsys.readouterr()
    assert main(["predict", str(run), *(str(tmp_path / f"{n}.png") for n in ("dark", "dark8", "wide")), "--json"]) == 1
    shown = capsys.readouterr()
    dark, dark8 = json.loads(shown.out)
    assert dark["probabilities"] == dark8["probabilities"]
    assert "wide.png: values up to 30000, and 4095 is white in these data" in shown.err
    assert main(["evaluate", str(run), "--data", str(tmp_path / "d")]) == 0


def test_masks_of_other_data_are_evaluated_by_the_names_of_their_classes(segmenter: Path, tmp_path: Path) -> None:
    """The same masks with the values of their classes exchanged, and names that say so: the same result."""
    found = {}
    for name, order in (("same", (0, 1, 2)), ("other", (2, 0, 1))):
        root = write_pairs(tmp_path / name, 6)
        for path in (root / "masks").iterdir():
            Image.fromarray(np.array(order, np.uint8)[np.asarray(Image.open(path))]).save(path)
        names = sorted(("sky", "mask", "width"), key=lambda c: order[("sky", "mask", "width").index(c)])
        (root / "classes.json").write_text(json.dumps(names))
        assert main(["evaluate", str(segmenter), "--data", str(root)]) == 0
        found[name] = json.loads((segmenter / "evaluation" / f"{name}.json").read_text())
    assert found["same"]["confusion"] == found["other"]["confusion"]
    (tmp_path / "same" / "classes.json").write_text('["sky", "mask", "height"]')
    assert main(["evaluate", str(segmenter), "--data", str(tmp_path / "same")]) == 2


# An empty class folder ended the evaluation; classes without images were not said.
def test_classes_without_images_are_said_in_an_evaluation(run: Path, tmp_path: Path, capsys) -> None:
    picture(tmp_path / "d" / "text" / "a.png")
    (tmp_path / "d" / "probability").mkdir()
    (tmp_path / "d" / "unknown").mkdir()
    assert main(["evaluate", str(run), "--data", str(tmp_path / "d"), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "folders without images, left out: probability, unknown" in said
    assert "2 of 3 classes have no image in test: image, probability" in said
