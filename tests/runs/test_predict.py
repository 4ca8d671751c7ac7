"""Predictions of a finished run: for images and folders, as a table and to a file."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from snella.cli.main import main
from snella.data.dataset import Images
from snella.runs.load import load_run
from snella.tuner.layer import SnellaLayer
from support.runs import train


def test_predict_names_what_it_cannot_read_and_goes_on(
    trained: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    shutil.copy(images / "c1" / "0.png", good)
    bad.write_bytes(b"")
    assert main(["predict", str(trained), str(bad), str(good), "--json"]) == 1
    shown = capsys.readouterr()
    (row,) = json.loads(shown.out)
    assert row["image"] == str(good)
    assert row["probability"] == max(row["probabilities"].values()) == row["probabilities"][row["class"]]
    assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert shown.err == f"snella: not predicted: {bad}: empty file (0 bytes)\n"


def test_predict_is_what_the_model_says(trained: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(trained), str(images / "c0"), "--json", "--batch-size", "3"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [Path(row["image"]).name for row in rows] == sorted(path.name for path in (images / "c0").iterdir())
    run = load_run(trained, "cpu")
    with Image.open(rows[4]["image"]) as picture:
        small = picture.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    pixels = torch.tensor(list(small.tobytes())).view(1, 32, 32, 3).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (run.preprocessing.mean, run.preprocessing.std))
    with torch.no_grad():
        expected = run.model((pixels - mean) / std).softmax(-1)[0]
    assert list(rows[4]["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_adapted_weights_are_made_once_for_all_batches(
    trained: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    add = SnellaLayer.add_update
    monkeypatch.setattr(SnellaLayer, "add_update", lambda self, *args: (made.append(self), add(self, *args))[1])
    run = load_run(trained)
    paths = tuple(map(str, sorted(images.rglob("*.png"))))
    found = list(
        run.learner.predict(run.model, Images(paths), run.task.eval_transform(run.preprocessing), batch_size=4)
    )
    assert len(found) == len(paths) > 8
    adapted = [module for module in run.model.modules() if isinstance(module, SnellaLayer)]
    assert sorted(map(id, made)) == sorted(map(id, adapted))
    assert bool(adapted) == (run.config.method.name == "snella")


def probabilities(capsys: pytest.CaptureFixture[str], *paths: Path) -> list[list[float]]:
    capsys.readouterr()
    assert main(["predict", *map(str, paths), "--json"]) == 0
    return [list(row["probabilities"].values()) for row in json.loads(capsys.readouterr().out)]


def test_several_runs_give_the_mean_of_their_probabilities(
    snella_run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    assert train(images, other, "--backbone", "test_convnext", "--method", "linear", "--epochs", "1") == 0
    parts = [probabilities(capsys, run, images / "c0") for run in (snella_run, other)]
    assert parts[0] != parts[1]
    both = probabilities(capsys, snella_run, images / "c0", other)
    expected = (torch.tensor(parts[0]) + torch.tensor(parts[1])) / 2
    torch.testing.assert_close(torch.tensor(both), expected, rtol=0, atol=1e-5)


def test_runs_that_cannot_be_averaged_are_refused(
    snella_run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(snella_run, other)
    about = json.loads((other / "adapter/snella.json").read_text())
    about["classes"] = ["x", "y", "z"]
    (other / "adapter/snella.json").write_text(json.dumps(about))
    (other / "adapter/checksums.json").unlink()
    assert main(["predict", str(snella_run), str(other), str(images)]) == 2
    assert "differ in classes" in capsys.readouterr().err


def test_predict_as_csv_to_a_file_and_as_a_table(
    snella_run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "predictions.csv"
    assert main(["predict", str(snella_run), str(images), "--out", str(out)]) == 0
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    assert rows[0].keys() == {"image", "class", "probability", "probability:c0", "probability:c1", "probability:c2"}
    capsys.readouterr()
    assert main(["predict", str(snella_run)]) == 0  # three of its own test images
    assert capsys.readouterr().out.count(".png") == 3


def test_predictions_replace_nothing_that_is_there(
    snella_run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "precious"
    shutil.copytree(images / "c0", folder)
    (folder / "last-week.csv").write_text("image,class\n")
    (folder / "link.csv").symlink_to("nowhere")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.exists()}
    for out in (folder, folder / "0.png", folder / "last-week.csv", folder / "link.csv"):
        assert main(["predict", str(snella_run), str(folder), "--out", str(out)]) == 2
        assert f"{out} exists already; choose another name" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir() if path.exists()} == before


@pytest.mark.parametrize(
    ("paths", "expected"), [(["nowhere.png"], "nowhere.png does not exist"), (["."], "holds no image")]
)
def test_predict_refuses_what_is_no_image(
    paths: list[str],
    expected: str,
    snella_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = snella_run.resolve()
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(run), *paths]) == 2
    assert expected in capsys.readouterr().err


def test_predict_of_only_unreadable_images_fails(
    snella_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    assert main(["predict", str(snella_run), str(tmp_path / "bad.png")]) == 2
    assert "none of the images can be read" in capsys.readouterr().err
