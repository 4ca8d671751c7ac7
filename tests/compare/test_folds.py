"""`snella train --folds K`: runs side by side, predictions of all images, means."""

from __future__ import annotations

import csv
import shutil
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

import pytest

from snella.cli.main import main
from support.runs import adapter, read, same, train, write_images

FOLDS = ["--folds", "2", "--epochs", "1", "--group-pattern", "[0-9](?=[.]png)"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of ten groups; each holds an image of each of two classes."""
    root = tmp_path_factory.mktemp("folds")
    data = write_images(root / "d", classes=2)
    assert train(data, root / "out", *FOLDS) == 0
    return root


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_every_image_is_predicted_by_the_fold_that_has_not_seen_it(trained: Path) -> None:
    rows = table(trained / "out" / "predictions.csv")
    assert sorted(row["file"] for row in rows) == sorted(f"c{c}/{i}.png" for c in (0, 1) for i in range(10))
    for fold in ("1", "2"):
        run = trained / "out" / f"fold-{fold}"
        splits = {row["file"]: row["split"] for row in table(run / "splits.csv")}
        inside = [row for row in rows if row["fold"] == fold]
        assert {row["file"] for row in inside} == {name for name, split in splits.items() if split == "test"}
        places = defaultdict(set)
        for name, split in splits.items():
            places[name[-5]].add(split)
        assert all(len(found) == 1 for found in places.values())
        right = fmean(row["class"] == row["label"] for row in inside)
        assert right == pytest.approx(read(run / "summary.json")["test"]["top1"])
    assert list(rows[0])[:5] == ["file", "fold", "label", "class", "probability"]


def test_the_summary_has_mean_and_spread_of_the_test_metrics(trained: Path) -> None:
    summary = read(trained / "out" / "summary.json")
    values = [read(trained / "out" / f"fold-{fold}" / "summary.json")["test"]["top1"] for fold in (1, 2)]
    assert summary["folds"] == 2
    assert summary["test"]["top1"] == pytest.approx(fmean(values))
    assert summary["test_std"]["top1"] == pytest.approx(stdev(values))
    assert [fold["test"]["top1"] for fold in summary["by_fold"]] == values


def test_a_fold_is_an_ordinary_run(trained: Path, tmp_path: Path) -> None:
    """The same by itself, and evaluated, checked and taken for the splits of another run."""
    out = trained / "out"
    assert train(trained / "d", tmp_path / "alone", *FOLDS, "--fold", "2") == 0
    assert same(adapter(tmp_path / "alone"), adapter(out / "fold-2"))
    splits = out / "fold-2" / "splits.csv"
    assert train(trained / "d", tmp_path / "by-file", "--epochs", "1", "--splits", str(splits)) == 0
    assert same(adapter(tmp_path / "by-file"), adapter(out / "fold-2"))
    assert main(["evaluate", str(out / "fold-2"), "--device", "cpu"]) == 0
    found = read(out / "fold-2" / "evaluation" / "test.json")["metrics"]["top1"]
    assert found == pytest.approx(read(out / "fold-2" / "summary.json")["test"]["top1"])
    assert main(["check", str(out)]) == 0


def test_finished_folds_are_not_run_again(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    shutil.copytree(trained / "out", out)
    for path in (out / "summary.json", out / "predictions.csv", out / "fold-2" / "summary.json"):
        path.unlink()
    before = (out / "fold-1" / "summary.json").stat().st_mtime_ns
    assert main(["check", str(out)]) == 1
    assert "--resume" in capsys.readouterr().out
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert (out / "fold-1" / "summary.json").stat().st_mtime_ns == before
    assert table(out / "predictions.csv") == table(trained / "out" / "predictions.csv")
    assert "fold-1 is finished" in capsys.readouterr().out
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert "out is finished; --overwrite trains it again" in capsys.readouterr().out


def test_what_is_not_one_run_is_said(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = trained / "d", str(trained / "out")
    cases = [
        (["evaluate", out], "holds the runs of a cross-validation; name one of them, such as"),
        (["train", "--data", str(data), "--out", out, *FOLDS], "exists: --resume goes on with it"),
        (["train", "--data", str(data), "--fold", "3", "--folds", "2"], "--fold 3 is one of --folds, which is 2"),
        (["train", "--data", str(data), "--folds", "2", "--test", "none"], "with --folds each fold is tested"),
        (["train", "--data", str(data), "--folds", "2", "--test-fraction", "0.2"], "the test split is a fold"),
        (["train", "--data", str(data), "--group-pattern", "("], "is not a regular expression"),
        (["compare", "--data", str(data), "--folds", "2", "--out", str(tmp_path / "c")], "--folds makes a run into"),
    ]
    for command, said in cases:
        assert main(command) == 2
        assert said in capsys.readouterr().err
    assert train(data, tmp_path / "few", "--folds", "30") == 2
    assert "20 images are too few for 30 folds; use --folds 20" in capsys.readouterr().err
    assert not (tmp_path / "few").exists()
