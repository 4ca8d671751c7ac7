"""Merged models and pipelines: plain ones, which others load and which give what the run does."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import diffusers
import numpy as np
import pytest
import timm
import torch

from snella.cli.main import main
from snella.runs.load import load_run
from support.generation_runs import CLASSES, PROMPT, pixels, predicted, train
from support.runs import read


def test_merge_gives_a_plain_model_with_the_same_logits(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


def test_a_merged_pipeline_loads_without_snella_and_gives_the_run_s_image(
    sd: Path, sd_run: Path, python: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    subprocess.run([python, "-c", code, str(out), str(tmp_path / "untuned")], check=True, capture_output=True)
    flags = ("--prompt", PROMPT, "--n", "1", "--seed", "3", "--steps", "2", "--guidance", "4")
    (own,) = predicted(sd_run, tmp_path / "own", *flags)
    assert np.abs(pixels(f"{out}.png") - pixels(own)).max() <= 1
    assert np.abs(pixels(tmp_path / "untuned.png") - pixels(own)).max() > 5
    before = sorted(out.rglob("*"))
    assert main(["merge", str(sd_run), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert sorted(out.rglob("*")) == before


def test_a_merged_class_conditional_pipeline_names_its_classes(
    class_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    assert main(["merge", str(class_run), "--out", str(out)]) == 0
    assert f'diffusers.UNet2DModel.from_pretrained("{out}", subfolder="unet")' in capsys.readouterr().out
    assert read(out / "classes.json") == list(CLASSES)
    assert diffusers.UNet2DModel.from_pretrained(out, subfolder="unet").config["num_class_embeds"] == 2


def test_a_merged_pipeline_is_a_backbone_again(class_run: Path, classes: Path, tmp_path: Path) -> None:
    assert main(["merge", str(class_run), "--out", str(tmp_path / "merged")]) == 0
    assert train(classes, tmp_path / "merged", tmp_path / "run", "--method", "linear") == 0


def test_onnx_is_refused_before_anything_is_loaded(
    class_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("snella.runs.load.load_run", lambda *_: pytest.fail("the model was loaded"))
    assert main(["merge", str(class_run), "--out", str(tmp_path / "m"), "--onnx", str(tmp_path / "m.onnx")]) == 2
    error = capsys.readouterr().err
    assert "--onnx" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
