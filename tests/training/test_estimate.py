"""The memory foretold is the memory that a run then reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from snella.cli.main import main
from snella.config.recipe import read_recipe, to_yaml
from snella.config.schema import TrainConfig
from snella.errors import UserError
from snella.runs.train import train
from snella.training import estimate as module
from snella.training.estimate import Estimate
from support import masked_runs, runs


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return masked_runs.write_pairs(tmp_path_factory.mktemp("pairs"), 14)


def foretold(monkeypatch: pytest.MonkeyPatch, start: Callable[..., int], data: Path, out: Path, *flags: str) -> int:
    for name in ("allocation_figure", "training_curves_figure"):  # half of the time of so small a run
        monkeypatch.setattr(f"snella.report.figures.{name}", lambda *args, **options: None)
    found: list[Estimate] = []
    table = module.estimate_table
    monkeypatch.setattr("snella.runs.train.estimate_table", lambda estimate: found.append(estimate) or table(estimate))
    assert start(data, out, *flags, "--estimate") == 0
    assert not out.exists()
    return found[0].total


@pytest.mark.parametrize(("method", "batch"), [("snella", "4"), ("snella", "8"), ("lora", "8"), ("full", "4")])
@pytest.mark.parametrize("task", ["classify", "segment"])
def test_as_the_run_reports(
    task: str, method: str, batch: str, images: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, data = (runs.train, images) if task == "classify" else (masked_runs.train, pairs)
    flags = ("--method", method, "--batch-size", batch, "--epochs", "1")
    total = foretold(monkeypatch, start, data, tmp_path / "run", *flags)
    assert start(data, tmp_path / "run", *flags) == 0
    reported = json.loads((tmp_path / "run" / "summary.json").read_text())["peak_memory_bytes"]
    assert total == pytest.approx(reported, rel=0.05)


def test_a_decoder_that_refuses_one_image(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--backbone", "test_resnet", "--decoder", "upernet", "--batch-size", "4", "--epochs", "1")
    total = foretold(monkeypatch, masked_runs.train, pairs, tmp_path / "run", *flags)
    assert masked_runs.train(pairs, tmp_path / "run", *flags) == 0
    reported = json.loads((tmp_path / "run" / "summary.json").read_text())["peak_memory_bytes"]
    assert total == pytest.approx(reported, rel=0.15)


def test_a_run_is_left_alone(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.train(images, tmp_path / "run", "--epochs", "1") == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    assert runs.train(images, tmp_path / "run", "--epochs", "1", "--estimate") == 0
    assert "in all" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_no_recipe_says_it(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(to_yaml(replace(TrainConfig.of(data="d"), estimate=True)))
    assert read_recipe(str(recipe)) == TrainConfig.of(data="d")
    recipe.write_text("estimate: true\n")
    with pytest.raises(UserError, match="--estimate"):
        read_recipe(str(recipe))


def test_what_fits_and_what_not() -> None:
    found = Estimate(100, 10, 20, 0, 30, 7, batch_size=2, free=160 + 3 * 7 + 6)
    assert found.total == 160 + 2 * 7
    assert found.fitting == 3
    assert replace(found, free=50).fitting == 0
    assert replace(found, free=None).fitting is None


def test_eight_bits_are_refused_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", str(tmp_path / "nowhere"), "--device", "cpu", "--optimizer", "adamw8bit"]
    assert main(["train", *flags]) == 2
    assert capsys.readouterr().err.strip().endswith("use adamw")


def test_the_average_counts(images: Path, tmp_path: Path) -> None:
    model: dict = {"backbone": "test_vit", "pretrained": False, "image_size": 32, "method": "full", "device": "cpu"}
    config = TrainConfig.of(data=str(images), batch_size=4, **model)
    without, with_average = train(config.changed(estimate=True)), train(config.changed(estimate=True, ema=0.9))
    assert with_average["peak_memory_bytes"] - without["peak_memory_bytes"] == without["weights"]  # it has no buffers
