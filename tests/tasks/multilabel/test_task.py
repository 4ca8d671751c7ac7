"""A run of several labels from folder to merged model, by its commands."""

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
from snella.errors import UserError
from snella.tasks.multilabel.listing import lister
from support.runs import adapter, read, same, train

LABELS = ("red", "green", "Blue")


def write_table(folder: Path, count: int = 40) -> Path:
    """Write noisy images, bright in the channels of their labels, with a table of 0 and 1; some have none, some all."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        bits = [(i >> k) & 1 for k in range(3)]
        pixels = random.integers(0, 90, (40, 36, 3)) + 150 * np.array(bits)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        rows.append([f"{i}.png", *bits])
    with open(folder / "hot.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", *LABELS], *rows])
    with open(folder / "cells.csv", "w", newline="") as file:
        cells = [[row[0], ";".join(n for n, bit in zip(LABELS, row[1:], strict=True) if bit)] for row in rows]
        csv.writer(file).writerows([["path", "label"], *cells])
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("multilabel")
    data = write_table(folder / "images")
    assert train(data / "hot.csv", folder / "run", "--task", "multilabel", "--epochs", "4") == 0
    return folder


def test_a_run_tells_thresholds_metrics_and_figures(run: Path) -> None:
    summary, about = read(run / "run" / "summary.json"), read(run / "run" / "adapter" / "snella.json")
    assert summary["selection"] == {"metric": "map", "higher_is_better": True}
    assert summary["test"].keys() == {"map", "f1_micro", "f1_macro"}
    assert about["classes"] == list(LABELS)
    assert all(0 < threshold < 1 for threshold in about["thresholds"])
    assert (run / "run" / "labels.png").exists()
    assert main(["check", str(run / "run")]) == 0


def test_a_resumed_run_is_the_same_to_the_bit(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run / "run", copy)
    checkpoints = sorted((copy / "checkpoints").iterdir())
    shutil.rmtree(checkpoints[-1])
    shutil.rmtree(copy / "adapter")
    (copy / "summary.json").unlink()
    data = run / "images" / "hot.csv"
    assert train(data, copy, "--task", "multilabel", "--epochs", "4", "--resume") == 0
    assert same(adapter(copy), adapter(run / "run"))
    assert read(copy / "adapter" / "snella.json") == read(run / "run" / "adapter" / "snella.json")
    assert read(copy / "summary.json")["test"] == read(run / "run" / "summary.json")["test"]


def test_other_tables_of_the_same_images_are_evaluated_alike(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run / "run"), "--split", "val"]) == 0
    found = read(run / "run" / "evaluation" / "val.json")
    assert found["metrics"]["map"] == pytest.approx(read(run / "run" / "summary.json")["val"]["map"])
    assert [row["name"] for row in found["labels"]] == list(LABELS)
    for table in ("hot.csv", "cells.csv"):
        shutil.copy(run / "images" / table, run / "images" / f"other-{table}")
        (run / "run" / "start.json").rename(run / "start.json")  # it would know its own images
        assert main(["evaluate", str(run / "run"), "--data", str(run / "images" / f"other-{table}")]) == 0
        (run / "start.json").rename(run / "run" / "start.json")
    one, other = (read(run / "run" / "evaluation" / f"other-{name}.json") for name in ("hot", "cells"))
    assert one["metrics"] == other["metrics"]
    assert "mAP" in capsys.readouterr().out


def test_predictions_and_the_merged_model_agree(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [str(run / "images" / f"{i}.png") for i in (0, 7)]
    assert main(["predict", str(run / "run"), *images, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert main(["predict", str(run / "run"), *images, "--csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(lines[0]) == ["image", "labels", *(f"probability:{name}" for name in LABELS)]
    thresholds = read(run / "run" / "adapter" / "snella.json")["thresholds"]
    for row, line in zip(rows, lines, strict=True):
        told = [n for n, least in zip(LABELS, thresholds, strict=True) if row["probabilities"][n] >= least]
        assert row["labels"] == told
        assert line["labels"] == ";".join(told)
        assert float(line["probability:Blue"]) == pytest.approx(row["probabilities"]["Blue"])
    assert main(["merge", str(run / "run"), "--out", str(tmp_path / "merged")]) == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_model_data_config(model))
    with torch.no_grad():
        p = model(torch.stack([transform(Image.open(path)) for path in images])).sigmoid()
    expected = torch.tensor([list(row["probabilities"].values()) for row in rows])
    torch.testing.assert_close(p, expected, atol=2e-3, rtol=0)


def test_class_folders_that_share_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path / "images", 24)
    for i in range(24):
        for k, name in enumerate(LABELS):
            if (i >> k) & 1:
                (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
                shutil.copy(tmp_path / "images" / f"{i}.png", tmp_path / "data" / name / f"{name}-{i}.png")
    assert main(["data", str(tmp_path / "data"), "--task", "multilabel"]) == 0
    said = capsys.readouterr().out
    assert "12 images in several class folders" in said
    assert "suspicion" not in said
    shutil.rmtree(tmp_path / "data" / "red")
    shutil.rmtree(tmp_path / "data" / "green")
    shutil.copytree(tmp_path / "data" / "Blue", tmp_path / "data" / "other")
    for file in (tmp_path / "data" / "other").iterdir():
        file.unlink()
    shutil.copy(tmp_path / "images" / "1.png", tmp_path / "data" / "other")
    assert main(["data", str(tmp_path / "data"), "--task", "multilabel"]) == 2
    assert "--task classify learns them" in capsys.readouterr().err


def test_boxes_say_what_is_in_an_image(tmp_path: Path) -> None:
    for i, objects in enumerate([["cat", "dog", "cat"], ["dog"], ["cow", "cat"]]):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{i}.jpg")
        boxes = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        inside = "".join(f"<object><name>{name}</name>{boxes}</object>" for name in objects)
        size = "<size><width>20</width><height>20</height></size>"
        (tmp_path / f"{i}.xml").write_text(f"<annotation>{size}{inside}</annotation>")
    found = lister(None)(str(tmp_path), 0, NO_CHOICE)
    assert found.classes == ("cat", "cow", "dog")
    assert found.targets == {"0.jpg": (1, 0, 1), "1.jpg": (0, 0, 1), "2.jpg": (1, 1, 0)}


def test_a_table_in_the_folder_of_the_images(tmp_path: Path) -> None:
    data = write_table(tmp_path / "images", 8)
    (data / "cells.csv").unlink()
    (data / "hot.csv").write_text((data / "hot.csv").read_text().replace("path", "Image Name"))
    found = lister(None)(str(data), 0, NO_CHOICE)
    assert found.classes == LABELS
    assert found.targets["5.png"] == (1, 0, 1)
    for name in ("a", "b"):
        (data / name).mkdir()
        Image.new("RGB", (8, 8)).save(data / name / "other.png")
    with pytest.raises(UserError, match=r"two readings: 2 labels .* by the folders"):
        lister(None)(str(data), 0, NO_CHOICE)


def test_one_hot_tables_are_classes_where_each_image_has_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_table(tmp_path / "images", 40)
    rows = [["path", "Cat", "dog"], *([f"{i}.png", i % 2, 1 - i % 2] for i in range(40))]
    with open(data / "one.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert main(["data", str(data / "one.csv"), "--task", "classify"]) == 0
    said = capsys.readouterr().out
    assert "2 classes" in said
    assert "Cat" in said
    assert "the classes are the columns" in said
    assert main(["data", str(data / "one.csv"), "--task", "multilabel"]) == 2
    said = capsys.readouterr().err
    assert "--task classify" in said
    assert "--label-column Cat,dog" in said
    assert main(["data", str(data / "one.csv"), "--task", "multilabel", "--label-column", "Cat,dog"]) == 0
    assert main(["data", str(data / "hot.csv")]) == 2
    assert "--task multilabel" in capsys.readouterr().err
    (data / "cells.csv").write_text("path,label\n0.png,a\n1.png,b\n2.png,a;b\n")
    assert main(["data", str(data / "cells.csv")]) == 2
    assert "--task multilabel" in capsys.readouterr().err
    (data / "lists.jsonl").write_text('{"path": "0.png", "label": ["a", "b"]}\n')
    assert main(["data", str(data / "lists.jsonl")]) == 2
    assert "--task multilabel" in capsys.readouterr().err
