"""`snella merge RUN --lora R`: files that PEFT and diffusers load by themselves, and what is said of them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from snella.cli.main import main
from snella.integrations.lora import DIFFUSERS_FILE, KOHYA_FILE
from snella.runs.load import load_run
from support import masked_runs
from support.hf_segmenters import saved
from support.runs import read


def test_plain_peft_loads_a_run_as_lora_with_its_head(
    snella_run: Path, python: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, pixels = tmp_path / "lora", torch.randn(2, 3, 32, 32)
    assert main(["merge", str(snella_run), "--out", str(out), "--lora", "0.9999"]) == 0
    said = capsys.readouterr().out
    save_file({"pixels": pixels}, tmp_path / "pixels.safetensors")
    code = """
import sys; sys.modules["snella"] = None
import peft, timm
from safetensors.torch import load_file, save_file
base = timm.create_model("test_vit", num_classes=3, img_size=32)
base.load_state_dict(load_file(sys.argv[1]))
model = peft.PeftModel.from_pretrained(base, sys.argv[2]).eval()
save_file({"logits": model(load_file(sys.argv[3])["pixels"]).detach()}, sys.argv[4])
"""
    files = [snella_run / "base.safetensors", out, tmp_path / "pixels.safetensors", tmp_path / "logits.safetensors"]
    subprocess.run([python, "-c", code, *map(str, files)], check=True, capture_output=True)
    with torch.no_grad():
        expected = load_run(snella_run, "cpu").model(pixels)
    torch.testing.assert_close(load_file(files[3])["logits"], expected, rtol=1e-2, atol=1e-2)
    about, val = read(out / "lora.json"), read(snella_run / "summary.json")["val"]
    assert about["val"]["run"] == pytest.approx(val)
    assert about["val"]["lora"] == pytest.approx(val)
    assert all(layer["share"] >= 0.9999 for layer in about["layers"].values())
    assert len({layer["rank"] for layer in about["layers"].values()}) > 1
    assert "val, the run -> the LoRA: top-1" in said
    assert str(snella_run / "base.safetensors") in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ("0", "neither a whole number from 1 nor a share"),
        ("-3", "neither a whole number from 1 nor a share"),
        ("1.5", "--lora 1.5 is neither a rank"),
        ("64.0", "--lora 64.0 is neither a rank"),
        ("nan", "--lora nan is neither a rank"),
        ("٤", "--lora ٤ is neither a rank"),
        ("many", "--lora many is neither a rank"),
        ("65", "rank=65 is not between 1 and 64"),
    ],
)
def test_a_rank_that_cannot_be_is_refused(
    lora: str, said: str, snella_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(snella_run), "--out", str(tmp_path / "lora"), "--lora", lora]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_what_is_no_update_of_ours_is_refused(
    full_run: Path, snella_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "lora")
    assert main(["merge", str(full_run), "--out", out, "--lora", "4"]) == 2
    assert "is a run of method full" in capsys.readouterr().err
    assert main(["merge", str(snella_run), "--out", out, "--lora", "4", "--onnx", str(tmp_path / "m.onnx")]) == 2
    assert "--onnx" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_its_images_a_run_has_no_metrics_and_says_so(
    spoilable: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = spoilable / "config.yaml"
    config.write_text(config.read_text().replace(str(images), str(tmp_path / "gone")))
    assert main(["merge", str(spoilable), "--out", str(tmp_path / "lora"), "--lora", "4"]) == 0
    assert "no metrics: the run's val images cannot be read" in capsys.readouterr().out
    assert read(tmp_path / "lora" / "lora.json")["val"] == {"run": None, "lora": None}


@pytest.mark.parametrize("file", [DIFFUSERS_FILE, KOHYA_FILE])
def test_a_pipeline_loads_it_by_itself(file: str, sd: Path, sd_lora: Path, sd_run: Path) -> None:
    """Of ranks that differ, convolutions among them, under diffusers' names and under kohya's."""
    assert len({layer["rank"] for layer in read(sd_lora / "lora.json")["layers"].values()}) > 1
    pipe: Any = diffusers.StableDiffusionPipeline.from_pretrained(sd, safety_checker=None)
    unet = load_run(sd_run, "cpu").model
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([7]), torch.randn(1, 3, pipe.unet.config.cross_attention_dim)
    with torch.no_grad():
        before, expected = pipe.unet(*inputs).sample, unet(*inputs).sample
        pipe.load_lora_weights(sd_lora, weight_name=file)
        torch.testing.assert_close(pipe.unet(*inputs).sample, expected, rtol=1e-2, atol=1e-2)
        assert (before - expected).abs().max() > 0.1


@pytest.fixture(scope="module")
def sd_lora(sd_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sd") / "lora"
    assert main(["merge", str(sd_run), "--out", str(out), "--lora", "0.99999"]) == 0
    return out


def test_diffusers_finds_its_own_file(sd: Path, sd_lora: Path) -> None:
    pipe: Any = diffusers.StableDiffusionPipeline.from_pretrained(sd, safety_checker=None)
    pipe.load_lora_weights(sd_lora)
    assert pipe.get_active_adapters()
    assert "load_lora_weights" in (sd_lora / "README.md").read_text()


def test_networks_of_pipelines_without_loras_are_peft_s_alone(class_run: Path, tmp_path: Path) -> None:
    assert main(["merge", str(class_run), "--out", str(tmp_path / "lora"), "--lora", "2"]) == 0
    names = {path.name for path in (tmp_path / "lora").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "lora.json", "README.md"}


def test_a_segmenter_s_lora_is_for_the_model_that_transformers_makes(tmp_path: Path) -> None:
    saved("Segformer", tmp_path / "segformer")
    pairs = masked_runs.write_pairs(tmp_path / "cells", 8)
    flags = ("--backbone", f"hf:{tmp_path / 'segformer'}", "--pretrained", "--epochs", "1", "--lr", "0.1")
    assert masked_runs.train(pairs, tmp_path / "run", *flags) == 0
    assert main(["merge", str(tmp_path / "run"), "--out", str(tmp_path / "lora"), "--lora", "0.99999"]) == 0
    base = transformers.AutoModelForSemanticSegmentation.from_pretrained(
        tmp_path / "segformer", num_labels=3, ignore_mismatched_sizes=True
    )
    model: Any = peft.PeftModel.from_pretrained(base, str(tmp_path / "lora")).eval()
    images = torch.randn(2, 3, 32, 32)
    run: Any = load_run(tmp_path / "run", "cpu").model
    with torch.no_grad():
        expected = run.base_model.model.net(images).logits
        torch.testing.assert_close(model(images).logits, expected, rtol=1e-2, atol=1e-2)


def test_a_decoder_that_only_snella_makes_has_no_lora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert masked_runs.train(masked_runs.write_pairs(tmp_path / "cells", 8), tmp_path / "run", "--epochs", "1") == 0
    assert main(["merge", str(tmp_path / "run"), "--out", str(tmp_path / "lora"), "--lora", "4"]) == 2
    assert "only snella makes the decoder `plain`" in capsys.readouterr().err
    assert not (tmp_path / "lora").exists()
