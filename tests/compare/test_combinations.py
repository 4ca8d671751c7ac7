"""Soup and ensemble of the rates of a search: chosen on val, tested once, kept, and made anew where runs change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import snella.compare.combinations as combinations
from snella.cli.main import main
from snella.compare.soup import read_data
from snella.files import write_json
from snella.models.backbone import logits_of
from snella.runs.load import load_run
from support.runs import MODEL, read

FLAGS = ["--methods", "full", "--seeds", "3", "--epochs", "2", "--batch-size", "8", "--val-fraction", "0.3"]
RATES = ["--lr-grid", "1e-5,3e-3,5e-3,1e-2"]


def compare(images: Path, out: Path, *flags: str) -> dict[str, Any]:
    """Return the row of the only method."""
    assert main(["compare", "--data", str(images), "--out", str(out), *MODEL, *FLAGS, *RATES, *flags]) == 0
    (row,) = read(out / "compare.json")["methods"]
    return row


def mean_of_probabilities(runs: list[str], split: str) -> float:
    """Return top-1 of the mean of the runs' probabilities, computed image by image."""
    loaded = [load_run(Path(run)) for run in runs]
    data = read_data(Path(runs[0]), Console(quiet=True))
    right = []
    for batch in loaded[0].batches(data.splits[split], 1).epoch(1):
        with torch.no_grad():
            found = torch.stack([logits_of(run.model(batch["image"])).softmax(1) for run in loaded]).mean(0)
        right.append(found.argmax(1).item() == batch["label"].item())
    return sum(right) / len(right)


def test_scores_are_those_of_the_commands(images, tmp_path, ran, capsys):
    row = compare(images, tmp_path)
    alone, soup, ensemble = row["combined"]
    assert [each["kind"] for each in row["combined"]] == ["best rate alone", "soup", "ensemble"]
    assert alone["runs"] == [row["runs"][0]["folder"]]
    assert (alone["val"], alone["test"]) == (row["runs"][0]["val"], row["runs"][0]["test"])
    assert min(soup["val"]["top1"], ensemble["val"]["top1"]) >= alone["val"]["top1"]
    assert soup["runs"][0] == ensemble["runs"][0] == alone["runs"][0]
    assert len(soup["runs"]) > 1  # else the lines below show nothing
    assert len(ensemble["runs"]) > 1
    assert main(["soup", *soup["runs"], "--take-all", "--out", str(tmp_path / "full/soup")]) == 0
    made = read(tmp_path / "full/soup/summary.json")
    assert (made["val"], made["test"]) == (soup["val"], soup["test"])
    for split in ("val", "test"):
        assert ensemble[split]["top1"] == pytest.approx(mean_of_probabilities(ensemble["runs"], split))
    shown = capsys.readouterr().out
    assert f"snella predict {' '.join(ensemble['runs'])} IMAGES" in shown
    assert f"snella soup {' '.join(soup['runs'])} --take-all --out {tmp_path / 'full/soup'}" in shown
    assert "| seed 3: test (val) | best rate alone | soup of rates | ensemble of rates |" in (
        (tmp_path / "compare.md").read_text()
    )


def test_what_was_found_is_kept_while_the_runs_are_the_same(images, tmp_path, ran, monkeypatch):
    before, times = compare(images, tmp_path)["combined"], []
    make = combinations._made
    monkeypatch.setattr(combinations, "_made", lambda *args: times.append(args) or make(*args))
    assert compare(images, tmp_path)["combined"] == before
    assert not times
    summary = tmp_path / "full/lr-1e-05/seed-3/summary.json"
    write_json(summary, {**read(summary), "val": {**read(summary)["val"], "top1": 0.125}})
    assert len(compare(images, tmp_path)["combined"]) == 3
    assert len(times) == 1
    (tmp_path / "full/combined.json").write_text("{")
    assert "combined.json is damaged" in " ".join(_notes(images, tmp_path))
    assert len(times) == 1


def _notes(images: Path, out: Path) -> list[str]:
    compare(images, out)
    return read(out / "compare.json")["notes"]


def test_nothing_is_combined_where_that_is_not_wanted(images, tmp_path, ran, capsys):
    assert compare(images, tmp_path, "--no-combine")["combined"] == []
    assert not list(tmp_path.rglob("combined.json"))
    assert "soup" not in capsys.readouterr().out
