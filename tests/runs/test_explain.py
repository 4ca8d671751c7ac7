"""`snella predict --explain`: a heat map for each image, where it is said to be."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snella.cli.main import main
from snella.explain import maps
from snella.runs.load import load_run
from support import masked_runs
from support.runs import train

captum = pytest.importorskip("captum", reason="no captum: pip install 'snella[explain]'")


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """What is said of a prediction that is refused, in a line."""
    capsys.readouterr()
    assert main(["predict", *map(str, args), "--explain"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    return said


def test_each_image_has_the_map_of_its_class_where_it_is_said(trained: Path, images: Path, tmp_path: Path, capsys):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    one, other = images / "c0" / "0.png", images / "c1" / "0.png"
    assert main(["predict", str(run), str(one), str(other), "--json", "--explain"]) == 0
    shown = capsys.readouterr()
    rows = json.loads(shown.out)
    assert [row["explanation"] for row in rows] == [
        str(run / "explanations" / f"{stem}-explanation.png") for stem in ("0", "0-2")
    ]
    assert shown.err == f"heat maps in {run / 'explanations'}\n"
    explain = load_run(run).explainer()
    for row, path in zip(rows, (one, other), strict=True):
        with Image.open(path) as picture, Image.open(row["explanation"]) as found:
            expected = explain(picture.convert("RGB"), int(row["class"].removeprefix("c")))
            assert np.asarray(found).tolist() == np.asarray(expected).tolist()
    assert main(["check", str(run)]) == 0


def test_maps_stand_beside_the_file_of_predictions_or_where_pictures_are_asked_for(
    snella_run: Path, images: Path, tmp_path: Path, capsys
):
    image = str(images / "c0" / "1.png")
    out = tmp_path / "out" / "predictions.csv"
    assert main(["predict", str(snella_run), image, "--out", str(out), "--explain"]) == 0
    assert f"heat maps in {out.parent / 'explanations'}" in capsys.readouterr().out
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert row["explanation"] == str(out.parent / "explanations" / "1-explanation.png")
    assert Path(row["explanation"]).is_file()
    assert main(["predict", str(snella_run), image, "--explain", "--pictures", str(tmp_path / "mine")]) == 0
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["1-explanation.png"]
    assert not (snella_run / "explanations").exists()


def test_several_labels_have_the_map_of_the_likeliest(images: Path, tmp_path: Path, capsys):
    rows = [f"{path.relative_to(images)},{path.parent.name}" for path in sorted(images.rglob("*.png"))]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,label", *(f"{images}/{row}" for row in rows)]))
    run = tmp_path / "run"
    assert train(table, run, "--task", "multilabel", "--label-column", "label", "--epochs", "1") == 0
    capsys.readouterr()
    assert main(["predict", str(run), str(images / "c0" / "0.png"), "--json", "--explain"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert Path(row["explanation"]).is_file()


def test_what_has_no_heat_map_is_refused_in_a_line(snella_run: Path, full_run: Path, images: Path, tmp_path, capsys):
    assert "a heat map is of one run" in refused(capsys, snella_run, full_run, images)
    data = masked_runs.write_pairs(tmp_path / "data")
    assert masked_runs.train(data, tmp_path / "masks", "--epochs", "1") == 0
    assert "its task is segment" in refused(capsys, tmp_path / "masks", images)


def test_without_the_package_a_line_says_how_to_get_it(snella_run: Path, images: Path, monkeypatch, capsys):
    monkeypatch.setattr(maps, "find_spec", lambda name: None)
    assert "pip install 'snella[explain]'" in refused(capsys, snella_run, images)
