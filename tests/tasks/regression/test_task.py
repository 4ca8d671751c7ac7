"""A run of numbers from table to merged model, by its commands."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from snella.cli.main import main
from snella.data.folders.choices import NO_CHOICE
from snella.data.readers.labelled import read_test_data
from snella.errors import UserError
from snella.tasks.regression.listing import lister
from support.runs import adapter, read, same, train


def write_table(folder: Path, count: int = 40) -> Path:
    """Write noisy images with their brightness in two units, and an id."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    with open(folder / "t.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "id", "Grams", "score"])
        for i in range(count):
            level = int(random.integers(0, 160))
            pixels = random.integers(0, 90, (40, 36, 3)) + level
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
            rows.writerow([f"{i}.png", i, 1000 + 10 * level, f"{-level / 160:.3f}"])
    return folder


ASKED = ("--task", "regress", "--target-column", "grams,score", "--epochs", "4")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regression")
    data = write_table(folder / "images")
    assert train(data / "t.csv", folder / "run", *ASKED) == 0
    return folder


def test_a_run_tells_metrics_in_units_and_figures(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = read(run / "run" / "summary.json")
    assert summary["selection"] == {"metric": "standardised_mae", "higher_is_better": False}
    grams, score = summary["targets"]
    assert (grams["name"], score["name"]) == ("Grams", "score")
    assert 5 < grams["mae"] < 1000  # of a deviation of about 460
    assert summary["test"]["mae"] == pytest.approx((grams["mae"] + score["mae"]) / 2)
    assert (run / "run" / "scatter.png").exists()
    assert main(["check", str(run / "run")]) == 0
    assert main(["evaluate", str(run / "run")]) == 0
    said = capsys.readouterr().out
    assert "Grams" in said
    assert f"MAE {summary['test']['mae']:.4g}" in said.replace("\n", " ")


def test_a_resumed_run_is_the_same_to_the_bit(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run / "run", copy)
    shutil.rmtree(sorted((copy / "checkpoints").iterdir())[-1])
    shutil.rmtree(copy / "adapter")
    (copy / "summary.json").unlink()
    assert train(run / "images" / "t.csv", copy, *ASKED, "--resume") == 0
    assert same(adapter(copy), adapter(run / "run"))
    assert read(copy / "summary.json")["test"] == read(run / "run" / "summary.json")["test"]


def test_predictions_and_the_merged_model_are_in_units(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(run / "images" / f"{i}.png") for i in (0, 7)]
    assert main(["predict", str(run / "run"), *images, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(500 < row["values"]["Grams"] < 3500 for row in rows)
    assert main(["predict", str(run / "run"), *images, "--csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(lines[0]) == ["image", "value:Grams", "value:score"]
    assert float(lines[1]["value:score"]) == pytest.approx(rows[1]["values"]["score"])
    assert main(["merge", str(run / "run"), "--out", str(tmp_path / "merged")]) == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_model_data_config(model))
    with torch.no_grad():
        found = model(torch.stack([transform(Image.open(path)) for path in images]))
    expected = torch.tensor([list(row["values"].values()) for row in rows])
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize(
    ("rows", "flag", "said"),
    [
        ("a.png,1\nb.png,\nc.png,3\n", None, "line 3: size is empty; write a number such as 1.5"),
        ("a.png,1\nb.png,tall\nc.png,3\n", None, "line 3: size is 'tall', which is not a finite number"),
        ("a.png,1\nb.png,nan\nc.png,3\n", "size", "line 3: size is 'nan', which is not a finite number"),
        ("a.png,1\nb.png,1e999\nc.png,3\n", None, "line 3: size is '1e999', which is not a finite number"),
        ("a.png,1\nb.png,1_000\nc.png,3\n", None, "line 3: size is '1_000', which is not a finite number"),
        ("a.png,1\nb.png,٤\nc.png,3\n", None, "line 3: size is '٤', which is not a finite number"),
        ("a.png,1\na.png,2\n", None, "a.png is already in line 2"),
        ("a.png,1\nb.png,2\n", "length", "--target-column length: "),
    ],
)
def test_a_cell_that_is_not_a_number_is_named(tmp_path: Path, rows: str, flag: str | None, said: str) -> None:
    (tmp_path / "t.csv").write_text(f"path,size\n{rows}")
    with pytest.raises(UserError) as error:
        lister(flag)(str(tmp_path / "t.csv"), 0, NO_CHOICE)
    assert said in str(error.value)


def test_several_columns_of_numbers_are_named_and_one_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("path,Age,Size\na,1,0.5\nb,2,0.25\n")
    with pytest.raises(UserError, match="several columns of numbers: Age, Size; choose one or several by --target-col"):
        lister(None)(str(path), 0, NO_CHOICE)
    assert lister("size")(str(path), 0, NO_CHOICE).targets == {"a": (0.5,), "b": (0.25,)}
    assert lister("2,1")(str(path), 0, NO_CHOICE).targets == {"a": (0.5, 1.0), "b": (0.25, 2.0)}
    path.write_text("path,id,target\na,1,0.5\nb,2,0.25\n")
    assert lister(None)(str(path), 0, NO_CHOICE).classes == ("target",)


def test_a_trained_model_is_tested_on_all_that_it_has_learnt(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("path,Size,Age\na.png,1,0.5\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    known = ["Age", "Size"]
    found = read_test_data(str(path), known, seed=0, lister=lister(None, known))
    assert found.splits["test"].targets == ((0.5, 1.0),)
    path.write_text("path,Age\na.png,1\n")
    with pytest.raises(UserError, match="has no 'Size', which the model has learnt"):
        read_test_data(str(path), known, seed=0, lister=lister(None, known))


def test_classes_that_stand_for_numbers(tmp_path: Path) -> None:
    levels = lister(None)("elpv-levels", 0, NO_CHOICE)
    plain = {target for (target,) in levels.targets.values()}
    assert plain == {0.0, 1 / 3, 2 / 3, 1.0}
    assert {split: len(entries) for split, entries in levels.splits.items()} == {"train": 800, "val": 200, "test": 1624}
    for name in ("12", "7.5"):
        (tmp_path / "ages" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "ages" / name / "a.png")
    assert lister(None)(str(tmp_path / "ages"), 0, NO_CHOICE).targets == {"12/a.png": (12.0,), "7.5/a.png": (7.5,)}
    (tmp_path / "ages" / "7.5").rename(tmp_path / "ages" / "young")
    with pytest.raises(UserError, match="class 'young' is not a number to learn; add --task classify"):
        lister(None)(str(tmp_path / "ages"), 0, NO_CHOICE)
