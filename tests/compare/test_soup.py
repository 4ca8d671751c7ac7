"""Soups: the mean of the runs' weights, taken by val, in a folder that is a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from snella.cli.main import main
from support.runs import read, train, write_images


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that learn, of two methods, and one that cannot."""
    place = tmp_path_factory.mktemp("soup")
    write_images(place / "data", count=14)
    base = ["--val-fraction", "0.3", "--test-fraction", "0.3"]
    assert train(place / "data", place / "a", *base, "--epochs", "4") == 0
    same = ["--checkpoint", str(place / "base.safetensors"), "--pretrained"]
    shutil.copyfile(place / "a/base.safetensors", place / "base.safetensors")
    for name, *flags in (
        ("good", "--epochs", "4"),
        ("lora", "--method", "lora", "--epochs", "4"),
        ("bad", "--method", "full", "--lr", "1"),
    ):
        assert train(place / "data", place / name, *base, *same, *flags) == 0
    return place


def merged(run: Path, out: Path) -> dict[str, Tensor]:
    assert main(["merge", str(run), "--out", str(out)]) == 0
    (file,) = out.glob("*.safetensors")
    return load_file(file)


def soup(place: Path, *flags: str, out: str, runs: tuple[str, ...] = ("bad", "lora", "good")) -> int:
    return main(["soup", *(str(place / run) for run in runs), "--out", str(place / out), *flags])


def test_all_are_averaged_where_that_is_asked_for(place: Path, tmp_path: Path) -> None:
    assert soup(place, "--take-all", out="all") == 0
    parts = [merged(place / name, tmp_path / name) for name in ("good", "lora", "bad")]
    average = merged(place / "all", tmp_path / "all")
    assert average.keys() == parts[0].keys()
    for name, value in average.items():
        expected = torch.stack([part[name].double() for part in parts]).mean(0)
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-6)
    assert [row["taken"] for row in read(place / "all/summary.json")["soup"]] == [True] * 3


def test_a_run_that_is_named_twice_counts_once(place: Path, tmp_path: Path) -> None:
    assert soup(place, "--take-all", out="twice", runs=("good", "lora", "good")) == 0
    parts = [merged(place / name, tmp_path / name) for name in ("good", "lora")]
    for name, value in merged(place / "twice", tmp_path / "twice").items():
        expected = torch.stack([part[name].double() for part in parts]).mean(0)
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-6)


def test_a_run_that_makes_val_worse_is_left_out(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert soup(place, out="greedy") == 0
    printed = capsys.readouterr().out
    summary = read(place / "greedy/summary.json")
    taken = {Path(row["run"]).name: row["taken"] for row in summary["soup"]}
    assert not taken["bad"]
    assert taken["good"] or taken["lora"]
    assert f"the average of {sum(taken.values())} of 3 runs" in printed
    singles = [read(place / name / "summary.json")["val"]["top1"] for name in taken]
    assert summary["val"]["top1"] >= max(singles)
    parts = [merged(place / name, tmp_path / name) for name in taken if taken[name]]
    for name, value in merged(place / "greedy", tmp_path / "greedy").items():
        expected = torch.stack([part[name].double() for part in parts]).mean(0)
        torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-6)


def test_where_the_backbone_lay_does_not_matter(place: Path) -> None:
    assert soup(place, out="places", runs=("a", "good")) == 0


def test_a_soup_is_a_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert soup(place, out="used", runs=("good", "lora")) == 0
    assert main(["check", str(place / "used")]) == 0
    assert main(["evaluate", str(place / "used")]) == 0
    found = read(place / "used/evaluation/test.json")["metrics"]
    expected = read(place / "used/summary.json")["test"]
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    capsys.readouterr()
    assert main(["predict", str(place / "used"), str(place / "data/c1"), "--csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 15


def refused(place: Path, runs: tuple[str, ...], capsys: pytest.CaptureFixture[str], out: str = "none") -> str:
    before = {path.name for path in place.iterdir()}
    capsys.readouterr()
    assert soup(place, out=out, runs=runs) == 2
    assert {path.name for path in place.iterdir()} == before
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be_averaged_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--val-fraction", "0.3", "--test-fraction", "0.3", "--pretrained"]
    same = ["--checkpoint", str(place / "base.safetensors")]
    assert train(place / "data", place / "seed", *base, *same, "--seed", "1", "--method", "linear") == 0
    assert train(place / "data", place / "larger", *base, *same, "--image-size", "48", "--method", "linear") == 0
    shutil.copytree(place / "good", place / "unfinished")
    (place / "unfinished/summary.json").unlink()
    assert "two runs or more" in refused(place, ("good", "good"), capsys)
    assert "their seeds are 0 and 1" in refused(place, ("good", "seed"), capsys)
    assert "differ in backbone.image_size" in refused(place, ("good", "larger"), capsys)
    assert "not finished" in refused(place, ("good", "unfinished"), capsys)
    assert "does not exist" in refused(place, ("good", "nowhere"), capsys)
    assert "exists" in refused(place, ("good", "lora"), capsys, out="bad")
    assert main(["soup", str(place / "good"), str(place / "lora")]) == 2
