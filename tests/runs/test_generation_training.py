"""Learning to generate from the command line: the run folder of any task, for every family and method."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from snella.cli.main import main
from snella.config.method import METHODS
from support import tiny_pipelines
from support.generation_runs import (
    CAPTIONS,
    PROMPT,
    TINY,
    evaluated,
    pixels,
    predicted,
    train,
    write_flat,
    write_metadata,
    write_texts,
)
from support.runs import adapter, read, rows, same, stop_after_first_checkpoint

SUMMARY = {"test", "val", "noise_levels", "trainable_parameters", "adapter_bytes", "peak_memory_bytes", "seconds"}


def test_the_run_folder_and_the_summary_are_those_of_any_task(sd_run: Path) -> None:
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


def test_it_learns_one_image(sd: Path, tmp_path: Path) -> None:
    data = write_flat(tmp_path / "one", 1)
    flags = ("--prompt", PROMPT, "--method", "full", "--lr", "3e-2", "--epochs", "40", "--augment", "none")
    assert train(data, sd, tmp_path / "run", *flags, "--weight-decay", "0") == 0
    losses = [row["denoising_loss"] for row in rows(tmp_path / "run", "val")]
    assert losses[-1] < losses[0] / 2  # the first epoch is one step at the warm-up's rate: as good as untrained


def test_grids_between_the_epochs_are_those_asked_for(class_run: Path, sd_run: Path) -> None:
    assert (class_run / "samples" / "epoch-001.png").is_file()
    assert not list((sd_run / "samples").glob("epoch-*"))
    with Image.open(class_run / "samples" / "after.png") as grid, Image.open(sd_run / "samples" / "after.png") as row:
        assert grid.height > row.height  # a row for each of the two classes


def test_a_stopped_run_goes_on_to_the_same_bits(
    sd: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    assert same(adapter(stopped), adapter(whole))
    for name in ("before", "after"):
        first, second = (pixels(run / "samples" / f"{name}.png") for run in (whole, stopped))
        assert np.array_equal(first, second)


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
def test_every_family_trains_is_loaded_again_and_generates(
    write: str, options: dict[str, Any], texts: Path, classes: Path, tmp_path: Path
) -> None:
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


USUAL = ("snella", "lora", "full")  # the others take as long again


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in USUAL else pytest.mark.slow) for name in METHODS]
)
def test_every_method_trains_and_is_loaded_again(method: str, unet: Path, classes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    convolutions = ("--adapt-convs",) if method in ("snella", "snell", "lora") else ()
    assert train(classes, unet, run, "--method", method, *convolutions) == 0
    assert evaluated(run) == pytest.approx(read(run / "summary.json")["test"]["denoising_loss"], rel=1e-4)


def test_linear_trains_the_class_embedding_alone(unet: Path, classes: Path, tmp_path: Path) -> None:
    assert train(classes, unet, tmp_path / "run", "--method", "linear") == 0
    trained = adapter(tmp_path / "run")
    assert [name for name in trained if "class_embedding" in name] == list(trained)
    before = load_file(unet / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(not torch.equal(trained[name], before[name]) for name in trained)
    assert main(["predict", str(tmp_path / "run"), "--prompt", "dog", "--n", "1", "--device", "cpu"]) == 0


# What is read


def test_an_unconditional_model_looks_at_no_class(
    flat: Path, classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
def test_captions_are_read_from_text_files_and_from_metadata(
    write: Callable[..., Path], sd: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "data", CAPTIONS)
    assert train(data, sd, tmp_path / "run", "--method", "bitfit") == 0
    about = read(tmp_path / "run" / "adapter" / "snella.json")
    assert about["condition"] == "text"
    assert set(about["prompts"]) == set(CAPTIONS)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [((), ["cat", "dog"]), (("--prompt", "a photo of {class}"), ["a photo of cat", "a photo of dog"])],
)
def test_class_folders_caption_a_text_model(
    flags: tuple[str, ...], expected: list[str], sd: Path, classes: Path, tmp_path: Path
) -> None:
    assert train(classes, sd, tmp_path / "run", "--method", "bitfit", *flags) == 0
    assert sorted(read(tmp_path / "run" / "adapter" / "snella.json")["prompts"]) == expected
    assert main(["predict", str(tmp_path / "run"), "--prompt", "a blue cat", "--n", "1", "--device", "cpu"]) == 0


def test_data_shows_captions_and_the_bundled_photographs(
    place: Path, classes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_metadata(place / "metadata", CAPTIONS)
    for arguments, expected in (
        ((str(data),), "captions in metadata.jsonl"),
        ((str(classes), "--task", "generate"), "cat"),
        (("photos-new", "--task", "generate"), "tissue"),
    ):
        capsys.readouterr()
        assert main(["data", *arguments]) == 0
        assert expected in capsys.readouterr().out


def test_a_prompt_that_is_cut_is_told_and_trains(
    sd: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "a photo of a cat " * 5 + "red"
    assert train(flat, sd, tmp_path / "run", "--prompt", prompt, "--method", "bitfit") == 0
    shown = capsys.readouterr()
    assert re.search("1 caption is too long: .* does not read '.*red'", shown.out)
    assert "sequence length" not in shown.err


def test_a_safety_checker_is_not_loaded_and_that_is_told(
    sd: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
        ("FLAT", "SD", ("--prompt", PROMPT, "--image-size", "18"), "--image-size 18 is not a multiple of 4"),
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
def test_what_cannot_be_trained_is_one_line(
    data: str,
    backbone: str,
    flags: tuple[str, ...],
    expected: str,
    spoilt: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    capsys.readouterr()
    assert train(spoilt[data], spoilt.get(backbone, backbone), tmp_path / "run", *flags) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_backbone_is_asked_for_before_the_data_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--data", "nowhere", *TINY, "--out", str(tmp_path / "run")]) == 2
    assert "to generate, --backbone names a diffusers pipeline" in capsys.readouterr().err
