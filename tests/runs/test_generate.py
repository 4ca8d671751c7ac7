"""Generation from the command line: the same commands and run folder as for the other tasks."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import snella
import snella.runs.train
import snella.tasks.generation.denoising
from snella.cli.main import main
from snella.config.method import METHODS
from support import tiny_pipelines
from support.generation_runs import (
    CLASSES,
    TINY,
    picture,
    train,
    write_class_folders,
    write_flat,
    write_metadata,
    write_texts,
)
from support.runs import stop_after_first_checkpoint, write_images
from support.runs import train as train_classifier

SUMMARY = {"test", "val", "noise_levels", "trainable_parameters", "adapter_bytes", "peak_memory_bytes", "seconds"}
PROMPT = "a photo of sks"
CAPTIONS = ["a red cat", "a blue dog", "a photo of a cat", "a photo of a dog"] * 3


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNELLA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pipelines and images of this file are."""
    return tmp_path_factory.mktemp("generate")


@pytest.fixture(scope="module")
def sd(place: Path) -> Path:
    return tiny_pipelines.write_sd(place / "sd")


@pytest.fixture(scope="module")
def unet(place: Path) -> Path:
    return tiny_pipelines.write_unet(place / "unet", classes=2)


@pytest.fixture(scope="module")
def flat(place: Path) -> Path:
    return write_flat(place / "flat")


@pytest.fixture(scope="module")
def texts(place: Path) -> Path:
    return write_texts(place / "texts", CAPTIONS)


@pytest.fixture(scope="module")
def classes(place: Path) -> Path:
    return write_class_folders(place / "classes")


@pytest.fixture(scope="module")
def sd_run(place: Path, sd: Path, flat: Path) -> Path:
    """A finished run. Tests only read it, or add to it."""
    assert train(flat, sd, place / "sd-run", "--prompt", PROMPT, "--epochs", "2", "--lr", "0.1", "--adapt-convs") == 0
    return place / "sd-run"


@pytest.fixture(scope="module")
def class_run(place: Path, unet: Path, classes: Path) -> Path:
    assert train(classes, unet, place / "class-run", "--lr", "3e-2", "--epochs", "2", "--sample-every", "1") == 0
    return place / "class-run"


@pytest.fixture(scope="module")
def classifier_run(place: Path) -> Path:
    data = write_images(place / "to-classify", classes=2, count=6)
    assert train_classifier(data, place / "classifier", "--epochs", "1", "--method", "linear") == 0
    return place / "classifier"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    every = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in every if row["kind"] == kind]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "adapter").glob("*.safetensors")
    return load_file(file)


def pixels(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def predicted(run: Path, folder: Path, *flags: str) -> list[Path]:
    """The images that `predict` writes to a new folder, in order."""
    assert main(["predict", str(run), "--pictures", str(folder), "--device", "cpu", *flags]) == 0
    return sorted(folder.iterdir())


def evaluated(run: Path) -> float:
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    return read(run / "evaluation" / "test.json")["metrics"]["denoising_loss"]


# What a run writes, and that it learns


def test_the_run_folder_and_the_summary_are_those_of_any_task(sd_run):
    names = {path.name for path in sd_run.iterdir()}
    assert {"config.yaml", "adapter", "checkpoints", "metrics.jsonl", "allocation.jsonl", "summary.json"} <= names
    figures = [
        sd_run / f"{name}.png" for name in ("before-after", "levels", "curves", "samples/before", "samples/after")
    ]
    for figure in figures:
        with Image.open(figure) as opened:
            opened.verify()
    summary = read(sd_run / "summary.json")
    assert summary.keys() == SUMMARY | {"seed", "versions", "selection", "images", "device"}
    assert summary["test"].keys() == summary["val"].keys() == {"denoising_loss"}
    assert summary["test"]["denoising_loss"] == pytest.approx(np.mean(summary["noise_levels"][0]["losses"]))
    assert summary["val"]["denoising_loss"] == min(row["denoising_loss"] for row in rows(sd_run, "val"))
    assert not np.array_equal(pixels(sd_run / "samples" / "before.png"), pixels(sd_run / "samples" / "after.png"))


def test_it_learns_one_image(sd, tmp_path):
    data = write_flat(tmp_path / "one", 1)
    flags = ("--prompt", PROMPT, "--method", "full", "--lr", "3e-2", "--epochs", "40", "--augment", "none")
    assert train(data, sd, tmp_path / "run", *flags, "--weight-decay", "0") == 0
    losses = [row["denoising_loss"] for row in rows(tmp_path / "run", "val")]
    assert losses[-1] < losses[0] / 2  # the first epoch is one step at the warm-up's rate: as good as untrained


def test_grids_between_the_epochs_are_those_asked_for(class_run, sd_run):
    assert (class_run / "samples" / "epoch-001.png").is_file()
    assert not list((sd_run / "samples").glob("epoch-*"))
    with Image.open(class_run / "samples" / "after.png") as grid, Image.open(sd_run / "samples" / "after.png") as row:
        assert grid.height > row.height  # a row for each of the two classes


def test_a_stopped_run_goes_on_to_the_same_bits(sd, flat, tmp_path, capsys):
    flags = ("--prompt", PROMPT, "--epochs", "4", "--checkpoint-every", "1", "--augment", "flip")
    flags += ("--caption-dropout", "0.2", "--noise-offset", "0.1", "--ema", "0.9")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(flat, sd, whole, *flags) == 0
    thread = stop_after_first_checkpoint(stopped, signal.SIGINT)
    code = train(flat, sd, stopped, *flags)
    thread.join()
    assert code == 128 + signal.SIGINT
    assert not (stopped / "summary.json").exists()
    command = re.search(r"snella: stopped; this goes on: (snella train .*)\n", capsys.readouterr().err)
    assert command is not None
    assert main(shlex.split(command[1])[1:]) == 0
    ours, theirs = adapter(stopped), adapter(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name in ("before", "after"):
        assert np.array_equal(*(pixels(run / "samples" / f"{name}.png") for run in (whole, stopped)))


# Families and methods


@pytest.mark.parametrize(
    ("write", "options"),
    [
        ("sd", {"prediction_type": "v_prediction"}),
        ("sdxl", {}),
        ("sd3", {}),
        ("flux", {}),
        ("flux", {"guidance_embeds": True}),
        ("pixart", {}),
        ("dit", {"classes": 5}),
    ],
)
def test_every_family_trains_is_loaded_again_and_generates(write, options, texts, classes, tmp_path):
    pipeline = getattr(tiny_pipelines, f"write_{write}")(tmp_path / "pipeline", **options)
    data, prompt = (classes, "dog") if write == "dit" else (texts, "a red dog")
    run = tmp_path / "run"
    assert train(data, pipeline, run) == 0
    assert evaluated(run) == pytest.approx(read(run / "summary.json")["test"]["denoising_loss"], rel=1e-4)
    flags = ("--prompt", prompt, "--n", "2", "--seed", "3")
    first, second = (predicted(run, tmp_path / name, *flags) for name in ("first", "second"))
    assert len(first) == len(second) == 2
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert not np.array_equal(pixels(first[0]), pixels(first[1]))
    with Image.open(first[0]) as made:
        assert made.size == (16, 16)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_is_loaded_again(method, unet, classes, tmp_path):
    run = tmp_path / "run"
    convolutions = ("--adapt-convs",) if method in ("snella", "snell", "lora") else ()
    assert train(classes, unet, run, "--method", method, *convolutions) == 0
    assert evaluated(run) == pytest.approx(read(run / "summary.json")["test"]["denoising_loss"], rel=1e-4)


def test_linear_trains_the_class_embedding_alone(unet, classes, tmp_path):
    assert train(classes, unet, tmp_path / "run", "--method", "linear") == 0
    trained = adapter(tmp_path / "run")
    assert [name for name in trained if "class_embedding" in name] == list(trained)
    before = load_file(unet / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(not torch.equal(trained[name], before[name]) for name in trained)
    assert main(["predict", str(tmp_path / "run"), "--prompt", "dog", "--n", "1", "--device", "cpu"]) == 0


# What can be done with a run


def test_a_merged_pipeline_loads_without_snella_and_gives_the_run_s_image(sd, sd_run, tmp_path, capsys):
    out = tmp_path / "merged"
    assert main(["merge", str(sd_run), "--out", str(out)]) == 0
    assert f'diffusers.StableDiffusionPipeline.from_pretrained("{out}")' in capsys.readouterr().out
    code = """
import sys; sys.modules["snella"] = None
import torch
from diffusers import StableDiffusionPipeline
for folder in sys.argv[1:]:
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    generator = torch.Generator().manual_seed(3)
    images = pipe("a photo of sks", num_inference_steps=2, guidance_scale=4, generator=generator, height=16, width=16)
    images.images[0].save(folder + ".png")
"""
    shutil.copytree(sd, tmp_path / "untuned")
    subprocess.run([sys.executable, "-c", code, str(out), str(tmp_path / "untuned")], check=True, capture_output=True)
    flags = ("--prompt", PROMPT, "--n", "1", "--seed", "3", "--steps", "2", "--guidance", "4")
    (own,) = predicted(sd_run, tmp_path / "own", *flags)
    assert np.abs(pixels(f"{out}.png") - pixels(own)).max() <= 1
    assert np.abs(pixels(tmp_path / "untuned.png") - pixels(own)).max() > 5
    before = sorted(out.rglob("*"))
    assert main(["merge", str(sd_run), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert sorted(out.rglob("*")) == before


def test_a_merged_class_conditional_pipeline_names_its_classes(class_run, tmp_path, capsys):
    out = tmp_path / "merged"
    assert main(["merge", str(class_run), "--out", str(out)]) == 0
    assert f'diffusers.UNet2DModel.from_pretrained("{out}", subfolder="unet")' in capsys.readouterr().out
    assert read(out / "classes.json") == list(CLASSES)
    assert diffusers.UNet2DModel.from_pretrained(out, subfolder="unet").config["num_class_embeds"] == 2


def test_a_merged_pipeline_is_a_backbone_again(class_run, classes, tmp_path):
    assert main(["merge", str(class_run), "--out", str(tmp_path / "merged")]) == 0
    assert train(classes, tmp_path / "merged", tmp_path / "run", "--method", "linear") == 0


def test_onnx_is_refused_before_anything_is_loaded(class_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("snella.runs.load.load_run", lambda *_: pytest.fail("the model was loaded"))
    assert main(["merge", str(class_run), "--out", str(tmp_path / "m"), "--onnx", str(tmp_path / "m.onnx")]) == 2
    error = capsys.readouterr().err
    assert "--onnx" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_loaded_into_a_pipeline_gives_what_predict_does(sd, sd_run, tmp_path):
    flags = ("--prompt", PROMPT, "--n", "1", "--seed", "5", "--steps", "3", "--guidance", "2")
    (own,) = predicted(sd_run, tmp_path / "own", *flags)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(sd, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)

    def made() -> np.ndarray:
        generator = torch.Generator().manual_seed(5)
        found = pipe(PROMPT, num_inference_steps=3, guidance_scale=2.0, generator=generator, height=16, width=16)
        return np.asarray(found.images[0]).astype(int)

    original = made()
    snella.load_into_pipeline(pipe, sd_run)
    assert np.abs(made() - pixels(own)).max() <= 1
    snella.unload_from_pipeline(pipe)
    assert np.array_equal(made(), original)
    assert np.abs(original - pixels(own)).max() > 5


def test_an_image_does_not_depend_on_those_beside_it(class_run, tmp_path):
    many = predicted(class_run, tmp_path / "many", "--prompt", "cat", "--n", "6", "--seed", "0")
    (alone,) = predicted(class_run, tmp_path / "alone", "--prompt", "cat", "--n", "1", "--seed", "5")
    assert [path.name for path in many] == [f"cat-{seed}.png" for seed in range(6)]
    assert np.abs(pixels(many[5]) - pixels(alone)).max() <= 1


def test_without_a_prompt_predict_makes_the_images_of_the_sample_grids(class_run, tmp_path, capsys):
    capsys.readouterr()
    made = predicted(class_run, tmp_path / "made", "--n", "2", "--json")
    found = json.loads(capsys.readouterr().out)
    assert [(row["prompt"], row["seed"]) for row in found] == [("cat", 0), ("cat", 1), ("dog", 0), ("dog", 1)]
    assert sorted(row["image"] for row in found) == [str(path) for path in made]
    # in a batch of the grids' size: another one rounds otherwise
    cat, dog = predicted(class_run, tmp_path / "one-each", "--n", "1")
    for image, sampled in ((cat, "00.png"), (dog, "01.png")):
        assert np.array_equal(pixels(image), pixels(class_run / "samples" / "after" / sampled))


def test_prompts_that_begin_alike_have_files_of_their_own(sd, tmp_path, capsys):
    prompts = [f"{'a photo of a cat ' * 4}{colour}" for colour in ("red", "blue")]
    data = write_texts(tmp_path / "data", prompts * 4)
    assert train(data, sd, tmp_path / "run", "--method", "bitfit") == 0
    assert len(predicted(tmp_path / "run", tmp_path / "made", "--n", "2")) == 4


def test_fidelity_to_the_split_is_the_same_twice(class_run, capsys):
    flags = ("--features", "vit_small_focus", "--samples", "8", "--device", "cpu")
    found = []
    for _ in range(2):
        assert main(["evaluate", str(class_run), *flags]) == 0
        found.append(read(class_run / "evaluation" / "test.json")["fidelity"])
    assert found[0] == found[1]
    assert found[0]["generated"] == 8
    assert found[0]["features"] == "vit_small_focus"
    assert -1 <= found[0]["similarity"] <= found[0]["nearest"] <= 1 + 1e-6


def test_metrics_are_kept_whatever_becomes_of_the_fidelity(class_run, classes, tmp_path, monkeypatch, capsys):
    flags = ("--features", "vit_small_focus", "--samples", "8", "--device", "cpu")
    few = tmp_path / "few" / "cat"
    few.mkdir(parents=True)
    shutil.copy(next((classes / "cat").iterdir()), few)
    assert main(["evaluate", str(class_run), "--data", str(few.parent), *flags]) == 2
    assert "--features compares with 2 images or more, and there are 1" in capsys.readouterr().err
    monkeypatch.setattr("snella.tasks.generation.denoising.fidelity", lambda *_, **__: 1 / 0)
    shutil.copytree(classes, tmp_path / "many")
    assert main(["evaluate", str(class_run), "--data", str(tmp_path / "many"), *flags]) == 1
    assert "denoising_loss" in read(class_run / "evaluation" / "many.json")["metrics"]


def test_fidelity_asks_a_text_model_for_the_references_captions(sd, classes, tmp_path, monkeypatch):
    assert train(classes, sd, tmp_path / "run", "--prompt", "a photo of {class}", "--method", "bitfit") == 0
    asked: list[str] = []
    sample = snella.tasks.generation.denoising.sample
    monkeypatch.setattr(
        "snella.tasks.generation.denoising.sample",
        lambda f, n, prompts, *rest: asked.extend(prompts) or sample(f, n, prompts, *rest),
    )
    flags = ("--features", "vit_small_focus", "--samples", "4", "--device", "cpu")
    assert main(["evaluate", str(tmp_path / "run"), *flags]) == 0
    assert set(asked) == {"a photo of cat", "a photo of dog"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("predict", "RUN", "some.png"), "makes images and takes none"),
        (("predict", "RUN", "--prompt", "cow"), "--prompt cow is none of the run's classes: cat, dog"),
        (("predict", "RUN", "--prompt", "cat", "--guidance", "-1"), "--guidance -1.0 is below 0"),
        (("predict", "RUN", "--prompt", "cat", "--steps", "0"), "--steps 0 is below 1"),
        (("predict", "RUN", "--prompt", "cat", "--guidance", "nan"), "--guidance nan is out of range"),
        (("predict", "RUN", "--prompt", "cat", "--seed", str(2**64)), "is out of range"),
        (("predict", "RUN", "--prompt", "cat", "--n", "0"), "--n 0 is below 1"),
        (("evaluate", "RUN", "--data", "FLAT"), "no class folders"),
        (("predict", "CLASSIFIER", "--prompt", "cat"), "generates no images"),
        (("evaluate", "CLASSIFIER", "--features", "vit_small_focus"), "makes no images"),
    ],
)
def test_what_a_run_cannot_do_is_one_line(flags, expected, class_run, classifier_run, flat, capsys):
    paths = {"RUN": class_run, "CLASSIFIER": classifier_run, "FLAT": flat}
    before = sorted(path for run in (class_run, classifier_run) for path in run.rglob("*"))
    capsys.readouterr()
    assert main([str(paths.get(word, word)) for word in flags]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert sorted(path for run in (class_run, classifier_run) for path in run.rglob("*")) == before


def test_images_without_captions_are_no_test_of_a_text_model(sd, texts, flat, tmp_path, capsys):
    assert train(texts, sd, tmp_path / "run", "--method", "bitfit") == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(flat), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "no captions" in error
    assert error.count("\n") == 1


# Prior, cache and settings


def test_missing_images_of_a_prior_are_generated_into_its_folder(sd, flat, tmp_path, monkeypatch, capsys):
    prior = tmp_path / "prior"
    prior.mkdir()
    picture(99).save(prior / "mine.png")
    flags = ("--prompt", PROMPT, "--prior-prompt", "a photo", "--prior-images", "4", "--prior-data", str(prior))
    assert train(flat, sd, tmp_path / "run", *flags) == 0
    assert "generating 3 images" in capsys.readouterr().out
    assert len(list(prior.iterdir())) == 4
    assert np.array_equal(pixels(prior / "mine.png"), np.asarray(picture(99)))
    lost = pixels(prior / "prior-0001.png")
    (prior / "prior-0001.png").unlink()  # a gap among those made
    assert train(flat, sd, tmp_path / "again", *flags) == 0
    assert "generating 1 images" in capsys.readouterr().out
    assert len(list(prior.iterdir())) == 4
    assert np.array_equal(pixels(prior / "prior-0001.png"), lost)
    monkeypatch.setattr("snella.tasks.generation.prepare.sample", lambda *_, **__: pytest.fail("images were generated"))
    assert train(flat, sd, tmp_path / "third", *flags) == 0


def test_a_prior_without_a_folder_is_generated_once(sd, flat, tmp_path, monkeypatch):
    monkeypatch.setenv("SNELLA_CACHE", str(tmp_path / "cache"))
    flags = ("--prompt", PROMPT, "--prior-prompt", "a photo", "--prior-images", "3", "--method", "bitfit")
    assert train(flat, sd, tmp_path / "run", *flags) == 0
    assert len(list((tmp_path / "cache" / "prior").rglob("*.png"))) == 3
    monkeypatch.setattr("snella.tasks.generation.prepare.sample", lambda *_, **__: pytest.fail("images were generated"))
    assert train(flat, sd, tmp_path / "again", *flags) == 0


def test_the_prior_weighs_in_the_loss(sd, flat, tmp_path):
    prior = write_flat(tmp_path / "prior", 4)
    losses = []
    for weight in ("0", "2"):
        flags = ("--prompt", PROMPT, "--prior-prompt", "a photo", "--prior-images", "4", "--prior-data", str(prior))
        run = tmp_path / f"weight-{weight}"
        assert train(flat, sd, run, *flags, "--prior-weight", weight, "--method", "bitfit") == 0
        losses.append(rows(run, "train")[0]["loss"])
    assert 2.5 < losses[1] / losses[0] < 3.5  # 1 + 2, where all images are about as hard


def test_a_second_run_encodes_nothing_and_one_without_cache_learns_the_same(sd, flat, tmp_path, monkeypatch):
    monkeypatch.setenv("SNELLA_CACHE", str(tmp_path / "cache"))
    encoded: list[int] = []
    encode = diffusers.AutoencoderKL.encode
    monkeypatch.setattr(diffusers.AutoencoderKL, "encode", lambda vae, x: encoded.append(len(x)) or encode(vae, x))
    flags = ("--prompt", PROMPT, "--method", "bitfit")
    assert train(flat, sd, tmp_path / "first", *flags) == 0
    assert sum(encoded) == 12 + 8  # train, val and test, and those of train mirrored
    encoded.clear()
    assert train(flat, sd, tmp_path / "second", *flags) == 0
    assert not encoded
    assert train(flat, sd, tmp_path / "without", *flags, "--no-cache") == 0
    assert sum(encoded) >= 12
    losses = [
        read(tmp_path / name / "summary.json")["test"]["denoising_loss"] for name in ("first", "second", "without")
    ]
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=2e-2)


def test_gradient_checkpointing_gives_the_same_loss_in_less_memory(sd, flat, tmp_path):
    found = []
    for flags in ((), ("--gradient-checkpointing",)):
        run = tmp_path / f"run{len(flags)}"
        assert train(flat, sd, run, "--prompt", PROMPT, "--rematerialize", "none", *flags) == 0
        found.append((rows(run, "train")[0]["loss"], read(run / "summary.json")["peak_memory_bytes"]))
    (loss, peak), (other, less) = found
    assert other == pytest.approx(loss, rel=1e-4)
    assert less < 0.8 * peak


def test_min_snr_weighs_the_training_loss_alone(sd, flat, tmp_path):
    flags = ("--prompt", PROMPT, "--method", "bitfit", "--epochs", "4")  # 32 noise levels, some of them low
    assert train(flat, sd, tmp_path / "run", *flags, "--snr-gamma", "5") == 0
    assert train(flat, sd, tmp_path / "plain", *flags) == 0
    weighted, plain = (sum(row["loss"] for row in rows(tmp_path / name, "train")) for name in ("run", "plain"))
    assert weighted < 0.99 * plain  # no weight of min-SNR is above 1
    vals = [rows(tmp_path / name, "val")[0]["denoising_loss"] for name in ("run", "plain")]
    assert vals[0] == pytest.approx(vals[1], rel=0.1)


@pytest.mark.parametrize("method", ["snella", "lora", "full"])
def test_the_estimate_is_near_what_the_run_finds(method, unet, classes, tmp_path, monkeypatch):
    found: dict[str, Any] = {}
    estimate = snella.runs.train.estimate
    monkeypatch.setattr("snella.runs.train.estimate", lambda *a, **k: found.setdefault("estimate", estimate(*a, **k)))
    assert train(classes, unet, tmp_path / "run", "--method", method, "--estimate") == 0
    assert not (tmp_path / "run").exists()
    assert train(classes, unet, tmp_path / "run", "--method", method) == 0
    assert found["estimate"].total == pytest.approx(
        read(tmp_path / "run" / "summary.json")["peak_memory_bytes"], rel=0.15
    )


def test_the_estimate_counts_batches_of_a_larger_prior(sd, flat, tmp_path, monkeypatch):
    found: dict[str, Any] = {}
    estimate = snella.runs.train.estimate
    monkeypatch.setattr("snella.runs.train.estimate", lambda *a, **k: found.update(k) or estimate(*a, **k))
    prior = tmp_path / "prior"
    flags = ("--prompt", PROMPT, "--prior-prompt", "a photo", "--prior-data", str(prior), "--batch-size", "100")
    assert train(flat, sd, tmp_path / "run", *flags, "--prior-images", "50", "--estimate") == 0
    assert found["batch_size"] == 50
    assert train(flat, sd, tmp_path / "run", *flags, "--prior-images", "1", "--estimate") == 0
    assert found["batch_size"] < 50
    assert not prior.exists()  # to count, none is made


# Data


def test_an_unconditional_model_looks_at_no_class(flat, classes, tmp_path, capsys):
    pipeline = tiny_pipelines.write_unet(tmp_path / "pipeline")
    for data, name in ((flat, "alone"), (classes, "sorted")):
        run = tmp_path / name
        capsys.readouterr()
        assert train(data, pipeline, run) == 0
        assert ("is unconditional" in capsys.readouterr().out) == (name == "sorted")
        assert [path.name for path in predicted(run, tmp_path / f"{name}-made", "--n", "2")] == [
            "image-0.png",
            "image-1.png",
        ]
        capsys.readouterr()
        assert main(["predict", str(run), "--prompt", "cat"]) == 2
        assert "unconditional" in capsys.readouterr().err
    assert train(flat, pipeline, tmp_path / "asked", "--sample-prompts", "cat") == 2
    assert "is unconditional; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize("write", [write_texts, write_metadata])
def test_captions_are_read_from_text_files_and_from_metadata(write, sd, tmp_path):
    data = write(tmp_path / "data", CAPTIONS)
    assert train(data, sd, tmp_path / "run", "--method", "bitfit") == 0
    about = read(tmp_path / "run" / "adapter" / "snella.json")
    assert about["condition"] == "text"
    assert set(about["prompts"]) == set(CAPTIONS)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [((), ["cat", "dog"]), (("--prompt", "a photo of {class}"), ["a photo of cat", "a photo of dog"])],
)
def test_class_folders_caption_a_text_model(flags, expected, sd, classes, tmp_path):
    assert train(classes, sd, tmp_path / "run", "--method", "bitfit", *flags) == 0
    assert sorted(read(tmp_path / "run" / "adapter" / "snella.json")["prompts"]) == expected
    assert main(["predict", str(tmp_path / "run"), "--prompt", "a blue cat", "--n", "1", "--device", "cpu"]) == 0


def test_data_shows_captions_and_the_bundled_photographs(place, classes, capsys):
    data = write_metadata(place / "metadata", CAPTIONS)
    for arguments, expected in (
        ((str(data),), "captions in metadata.jsonl"),
        ((str(classes), "--task", "generate"), "cat"),
        (("photos-new", "--task", "generate"), "tissue"),
    ):
        capsys.readouterr()
        assert main(["data", *arguments]) == 0
        assert expected in capsys.readouterr().out


def test_a_prompt_that_is_cut_is_told_and_trains(sd, flat, tmp_path, capsys):
    prompt = "a photo of a cat " * 5 + "red"
    assert train(flat, sd, tmp_path / "run", "--prompt", prompt, "--method", "bitfit") == 0
    shown = capsys.readouterr()
    assert re.search("1 caption is too long: .* does not read '.*red'", shown.out)
    assert "sequence length" not in shown.err


def test_a_safety_checker_is_not_loaded_and_that_is_told(sd, flat, tmp_path, capsys):
    pipeline = Path(shutil.copytree(sd, tmp_path / "pipeline"))
    index = read(pipeline / "model_index.json")
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    index |= {"feature_extractor": ["transformers", "CLIPImageProcessor"], "requires_safety_checker": True}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    assert train(flat, pipeline, tmp_path / "run", "--prompt", PROMPT, "--method", "bitfit") == 0
    assert "the safety checker of" in (shown := capsys.readouterr().out)
    assert "is not loaded" in shown
    assert main(["merge", str(tmp_path / "run"), "--out", str(tmp_path / "merged")]) == 0
    diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "merged")


# What is refused


@pytest.fixture(scope="module")
def spoilt(place: Path, sd: Path, unet: Path, flat: Path, classes: Path, texts: Path) -> dict[str, Path]:
    """Name -> path, of pipelines and data that are in order, and of some that are not."""
    without_index = shutil.copytree(sd, place / "without-index")
    (without_index / "model_index.json").unlink()
    without_vae = shutil.copytree(sd, place / "without-vae")
    shutil.rmtree(without_vae / "vae")
    partly = shutil.copytree(texts, place / "partly")
    (partly / "3.txt").unlink()
    lost = write_metadata(place / "lost", CAPTIONS)
    (lost / "3.png").unlink()
    good = {"SD": sd, "UNET": unet, "FLAT": flat, "CLASSES": classes, "TEXTS": texts}
    return {**good, "NO_INDEX": without_index, "NO_VAE": without_vae, "PARTLY": partly, "LOST": lost}


@pytest.mark.parametrize(
    ("data", "backbone", "flags", "expected"),
    [
        ("FLAT", "vit_base_patch16_224.augreg_in21k", (), "to generate, --backbone names a diffusers pipeline"),
        ("FLAT", "nowhere", (), "--backbone nowhere does not exist"),
        ("FLAT", "NO_INDEX", (), "it has no model_index.json"),
        ("FLAT", "NO_VAE", (), "is incomplete: model_index.json names vae"),
        ("FLAT", "nobody/nothing", ("--prompt", PROMPT), "nobody/nothing: its model_index.json cannot be read"),
        ("FLAT", "SD", ("--prompt", PROMPT, "--image-size", "18"), "--image-size 18 is no multiple of 4"),
        ("FLAT", "SD", (), "has no captions, which"),
        ("TEXTS", "UNET", (), "has no class folders, and"),
        ("LOST", "SD", (), "image 3.png does not exist"),
        ("PARTLY", "SD", (), "3.png has no caption"),
        ("TEXTS", "SD", ("--prompt", PROMPT), "a prompt is given; drop the prompt"),
        ("FLAT", "SD", ("--prompt", "a {class}"), "has no class folders"),
        ("FLAT", "SD", ("--prompt", PROMPT, "--prior-data", "somewhere"), "--prior-data is read with --prior-prompt"),
        ("FLAT", "SD", ("--prompt", PROMPT, "--prior-prompt", "a photo", "--prior-data", __file__), "is a file; give"),
        ("CLASSES", "UNET", ("--prior-prompt", "a photo"), "--prior-prompt needs a text-to-image pipeline"),
        ("FLAT", "SD", ("--prompt", PROMPT, "--resize", "none"), "--resize none gives images of different sizes"),
        ("FLAT", "SD", ("--prompt", PROMPT, "--decoder", "unet"), "--decoder is read with --task segment only"),
        ("FLAT", "SD", ("--prompt", PROMPT, "--guidance", "-1"), "--guidance -1.0 is outside"),
        ("FLAT", "SD", ("--prompt", PROMPT, "--checkpoint", "x.pth"), "--checkpoint does not go with"),
        ("CLASSES", "UNET", ("--sample-prompts", "cow"), "--sample-prompts cow is none of the classes: cat, dog"),
        ("CLASSES", "small_unet", (), "small_unet has no pre-trained weights"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_one_line(data, backbone, flags, expected, spoilt, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    capsys.readouterr()
    assert train(spoilt[data], spoilt.get(backbone, backbone), tmp_path / "run", *flags) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_backbone_is_asked_for_before_the_data_is_looked_at(tmp_path, capsys):
    assert main(["train", "--data", "nowhere", *TINY, "--out", str(tmp_path / "run")]) == 2
    assert "to generate, --backbone names a diffusers pipeline" in capsys.readouterr().err
