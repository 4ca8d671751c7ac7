"""Segmentation from the command line: the same commands and run folder as for classification."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import snella.training.loop
from snella.cli.main import main
from snella.config.method import METHODS
from support.masked_runs import blobs, picture, train, write_pairs
from support.runs import adapter, read, rows, same

SUMMARY = {"test", "val", "trainable_parameters", "adapter_bytes", "peak_memory_bytes", "seconds", "seed", "versions"}
SUMMARY |= {"selection", "images", "device"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "cells")


@pytest.fixture(scope="module")
def run(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Tests only read it, or add to it."""
    folder = tmp_path_factory.mktemp("segment") / "run"
    assert train(pairs, folder) == 0
    return folder


def test_the_run_folder_and_the_summary_are_those_of_any_task(run):
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "adapter", "checkpoints", "metrics.jsonl", "allocation.jsonl", "summary.json"} <= names
    assert {"curves.png", "overlays.png", "confusion.png", "allocation.png"} <= names
    summary = read(run / "summary.json")
    assert summary.keys() == SUMMARY | {"classes"}
    for split in ("test", "val"):
        assert summary[split].keys() == {"miou", "mdice", "pixel_accuracy"}
        assert all(0 <= value <= 1 for value in summary[split].values())
    assert [row["name"] for row in summary["classes"]] == ["0", "1", "2"]
    assert sum(row["pixels"] for row in summary["classes"]) == 2 * 40 * 36  # two test images


def test_it_learns(pairs, tmp_path):
    flags = ("--method", "full", "--epochs", "12", "--lr", "3e-3", "--loss", "ce+dice", "--augment", "none")
    assert train(pairs, tmp_path / "run", *flags) == 0
    assert read(tmp_path / "run" / "summary.json")["test"]["miou"] > 0.5


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_is_loaded_again(method, pairs, tmp_path, capsys):
    assert train(pairs, tmp_path / "run", "--method", method, "--epochs", "1") == 0
    assert main(["evaluate", str(tmp_path / "run"), "--device", "cpu"]) == 0
    before, after = read(tmp_path / "run" / "summary.json"), read(tmp_path / "run" / "evaluation" / "test.json")
    assert after["metrics"]["miou"] == pytest.approx(before["test"]["miou"], abs=1e-3)


def test_evaluate_on_other_data_reads_masks_as_the_model_does(run, tmp_path):
    other = write_pairs(tmp_path / "other", count=3)
    assert main(["evaluate", str(run), "--data", str(other), "--device", "cpu"]) == 0
    report = read(run / "evaluation" / "other.json")
    assert np.sum(report["confusion"]) == 3 * 40 * 36
    assert (run / "evaluation" / "other.png").is_file()
    assert (run / "evaluation" / "other-confusion.png").is_file()


def test_evaluate_names_a_value_that_the_model_does_not_know(run, tmp_path, capsys):
    other = write_pairs(tmp_path / "other", count=3)
    Image.fromarray(np.full((40, 36), 9, dtype=np.uint8)).save(other / "masks" / "1.png")
    assert main(["evaluate", str(run), "--data", str(other), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "1.png" in error
    assert "value 9" in error


def test_predict_writes_masks_that_are_data_again(run, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        picture(blobs(i + 50, size=(70, 50))).save(images / f"{i}.png")
    assert main(["predict", str(run), str(images), "--json", "--pictures", str(tmp_path / "found")]) == 0
    predicted = json.loads(capsys.readouterr().out)
    masks = tmp_path / "again" / "masks"
    masks.mkdir(parents=True)
    for row in predicted:
        with Image.open(row["mask"]) as mask, Image.open(row["overlay"]) as overlay:
            assert mask.size == overlay.size == (50, 70)
            values, counts = np.unique(np.asarray(mask), return_counts=True)
            assert mask.mode == "P"
        areas = {int(name): area["pixels"] for name, area in row["areas"].items() if area["pixels"]}
        assert areas == dict(zip(values.tolist(), counts.tolist(), strict=True))
        assert sum(area["share"] for area in row["areas"].values()) == pytest.approx(1)
        shutil.copy(row["mask"], masks / Path(row["image"]).name)
    shutil.copytree(images, tmp_path / "again" / "images")
    assert main(["evaluate", str(run), "--data", str(tmp_path / "again"), "--device", "cpu"]) == 0
    assert read(run / "evaluation" / "again.json")["metrics"]["pixel_accuracy"] == 1


def test_predict_refuses_a_folder_in_use_and_goes_on_after_a_broken_image(run, tmp_path, capsys):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    assert main(["predict", str(run), "--pictures", str(tmp_path / "used")]) == 2
    assert "used exists already" in capsys.readouterr().err
    (tmp_path / "bad.png").write_bytes(b"no image")
    picture(blobs(1)).save(tmp_path / "good.png")
    paths = [str(tmp_path / "bad.png"), str(tmp_path / "good.png")]
    assert main(["predict", str(run), *paths, "--csv"]) == 1
    shown = capsys.readouterr()
    assert "bad.png" in shown.err
    assert shown.out.count("\n") == 2
    assert (run / "predictions" / "good-mask.png").is_file()


def test_a_resumed_run_ends_with_the_same_bits(pairs, run, tmp_path):
    half = tmp_path / "half"
    assert train(pairs, half, "--checkpoint-every", "1") == 0
    for path in (half / "summary.json", half / "adapter"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    newest = max((half / "checkpoints").iterdir())
    shutil.rmtree(newest)
    assert train(pairs, half, "--checkpoint-every", "1", "--resume") == 0
    assert same(adapter(half), adapter(run))


@pytest.mark.parametrize(
    ("flags", "load"),
    [
        ((), "logits = torch.export.load('{out}/model.pt2').module()(torch.zeros(2, 3, 32, 32))"),
        (
            ("--backbone", "test_resnet", "--decoder", "fpn"),
            "import segmentation_models_pytorch as smp; "
            "logits = smp.from_pretrained('{out}')(torch.zeros(2, 3, 32, 32))",
        ),
    ],
)
def test_merged_models_load_without_snella(flags, load, pairs, python, tmp_path):
    assert train(pairs, tmp_path / "run", "--epochs", "1", *flags) == 0
    out = tmp_path / "merged"
    assert main(["merge", str(tmp_path / "run"), "--out", str(out), "--onnx", str(tmp_path / "model.onnx")]) == 0
    said = read(out / "preprocessing.json")
    assert said["classes"] == ["0", "1", "2"]
    assert said["image_size"] == 32
    code = f"import sys; sys.modules['snella'] = None; import torch; {load.format(out=out)}; print(tuple(logits.shape))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert "(2, 3, 32, 32)" in found.stdout


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--decoder", "unet"), "decoder unet does not go with test_vit"),
        (("--backbone", "test_resnet", "--decoder", "plain"), "use unet or fpn or upernet or segformer"),
        (("--mixup", "0.2"), "--mixup is read with --task classify only"),
        (("--auto-augment", "original"), "--auto-augment is read with --task classify or multilabel or regress only"),
        (("--task", "classify", "--loss", "dice"), "--loss is read with --task segment only"),
        (("--task", "classify"), "holds images with masks; add --task segment"),
        (("--image-size", "40"), "not a multiple of the patch"),
        (("--ignore-index", "70000"), "--ignore-index 70000 is outside"),
    ],
)
def test_what_cannot_be_trained_is_one_line(flags, expected, pairs, tmp_path, capsys):
    assert train(pairs, tmp_path / "run", *flags) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_last_batch_of_one_image_is_left_out_and_batches_of_one_are_refused(pairs, tmp_path, capsys):
    """UPerNet has a batch norm over pooled images, which cannot be trained on one."""
    flags = ("--backbone", "test_resnet", "--decoder", "upernet", "--epochs", "1")
    assert train(pairs, tmp_path / "run", *flags, "--batch-size", "7") == 0  # of 8 images
    assert [row["step"] for row in rows(tmp_path / "run", "train")] == [1]
    capsys.readouterr()
    assert train(pairs, tmp_path / "one", *flags, "--batch-size", "1") == 2
    assert "pass --batch-size 2 or more" in capsys.readouterr().err


def test_data_shows_the_shares_of_the_classes(pairs, capsys):
    assert main(["data", str(pairs)]) == 0
    shown = capsys.readouterr().out
    assert "images and masks" in shown
    assert "%" in shown


def test_a_segmenter_of_transformers_trains_predicts_and_merges(pairs, tmp_path):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        decoder_hidden_size=16,
        num_attention_heads=[1, 1, 2, 2],
    )
    SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "base")
    flags = ("--backbone", f"hf:{tmp_path / 'base'}", "--pretrained", "--epochs", "1")
    assert train(pairs, tmp_path / "run", *flags) == 0
    assert main(["predict", str(tmp_path / "run")]) == 0
    assert main(["merge", str(tmp_path / "run"), "--out", str(tmp_path / "merged")]) == 0
    assert SegformerForSemanticSegmentation.from_pretrained(tmp_path / "merged").config.id2label == {
        0: "0",
        1: "1",
        2: "2",
    }


def test_smoke_and_windows_of_large_images(tmp_path):
    root = tmp_path / "large"
    for i in range(10):
        mask = blobs(i, size=(90, 60))
        for folder, image in (("images", picture(mask)), ("masks", Image.fromarray(mask))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            image.save(root / folder / f"{i}.png")
    assert train(root, tmp_path / "run", "--resize", "none", "--smoke", "--image-size", "32") == 0
    assert sum(row["pixels"] for row in read(tmp_path / "run" / "summary.json")["classes"]) == 2 * 90 * 60


def test_the_last_epoch_is_tested_as_well_where_asked(pairs, tmp_path, monkeypatch):
    flags = ("--epochs", "3")
    found = {}
    for best, better in (("first", lambda metric, so_far, _: so_far is None), ("last", lambda *_: True)):
        monkeypatch.setattr(snella.training.loop, "is_better", better)
        assert train(pairs, tmp_path / best, *flags, "--test", "both") == 0
        found[best] = read(tmp_path / best / "summary.json")
    assert found["first"]["test"] != found["first"]["test_last"]
    assert found["first"]["test_last"] == found["last"]["test"] == found["last"]["test_last"]
    assert train(pairs, tmp_path / "neither", *flags) == 0
    assert "test_last" not in read(tmp_path / "neither" / "summary.json")


def test_gradient_checkpointing_gives_the_same_bits_in_less_memory(pairs: Path, run: Path, tmp_path: Path) -> None:
    assert train(pairs, tmp_path / "less", "--gradient-checkpointing") == 0
    assert same(adapter(run), adapter(tmp_path / "less"))
    peaks = [read(folder / "summary.json")["peak_memory_bytes"] for folder in (run, tmp_path / "less")]
    assert peaks[1] < peaks[0]
