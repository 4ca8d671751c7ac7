"""Pipelines: the network, the frozen parts, long prompts, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from snella.diffusion import pipeline
from snella.diffusion.pipeline import (
    build_network,
    check_pipeline_name,
    condition_of,
    frozen_parts,
    image_unit,
)
from snella.errors import UserError
from support.tiny_pipelines import TEXT, WRITERS, Folders, network_spec

SIDE = 16  # pixels
PROMPT = "a photo of sks dog"


def refused(call: Callable[..., object], *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_tokenizer_of_sentencepiece_alone_is_read(copied: Folders, tmp_path: Path) -> None:
    """As PixArt's on the hub."""
    import sentencepiece

    folder = copied("pixart")
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    (tmp_path / "text").write_text("\n".join([PROMPT, "a red cat on the beach", "snow"] * 20))
    options: dict[str, Any] = {"vocab_size": 24, "hard_vocab_limit": False, "minloglevel": 2}
    options |= {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    place = str(folder / "tokenizer" / "spiece")
    sentencepiece.SentencePieceTrainer.train(input=str(tmp_path / "text"), model_prefix=place, **options)
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 120}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = frozen_parts(str(folder)).pipe.tokenizer
    assert tokenizer.decode(tokenizer(PROMPT).input_ids, skip_special_tokens=True) == PROMPT


def test_a_package_that_a_tokenizer_lacks_is_named(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(*args: Any, **kwargs: Any) -> None:
        raise ImportError("T5Tokenizer requires the SentencePiece library")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lacks)
    with pytest.raises(UserError, match=r"its pipeline cannot be loaded .T5Tokenizer requires the SentencePiece"):
        frozen_parts(str(folders("pixart")))


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_latents_are_the_vaes_scaled_and_shifted(name: str, folders: Folders) -> None:
    frozen = frozen_parts(str(folders(name)))
    images = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    vae: Any = diffusers.AutoencoderKL.from_pretrained(folders(name), subfolder="vae")
    shift, scale = {"sd": (0.0, 0.18215), "sd3": (0.06, 1.5)}[name]
    with torch.no_grad():
        expected = vae.encode(images).latent_dist
    moments = frozen.moments(images)
    torch.testing.assert_close(moments[:, :4], expected.mean)
    torch.testing.assert_close(frozen.latents(moments, sample=False), (expected.mode() - shift) * scale)
    torch.manual_seed(5)
    drawn = expected.sample()
    torch.manual_seed(5)
    torch.testing.assert_close(frozen.latents(moments, sample=True), (drawn - shift) * scale)
    assert (frozen.factor, frozen.vae.training) == (2, False)


def test_frozen_parts_have_nothing_to_train_and_no_network(folders: Folders) -> None:
    for name in WRITERS:
        frozen = frozen_parts(str(folders(name)))
        assert frozen.pipe.components[frozen.family.network] is None
        assert not any(p.requires_grad for part in (*frozen.encoders, frozen.vae) if part for p in part.parameters())
        assert not any(part.training for part in frozen.encoders)
        assert len(frozen.encoders) == {"sdxl": 2, "sd3": 3, "flux": 2, "flux-dev": 2}.get(name, int(name in TEXT))
        assert (frozen.factor, frozen.vae is None) == ((1, True) if name.startswith("unet") else (2, False))


def test_without_pretrained_weights_the_seed_draws_them(folders: Folders) -> None:
    first, same, other = (
        build_network(network_spec(folders("dit"), 2, pretrained=False, seed=seed)).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(value, same[key]) for key, value in first.items())
    assert any(not torch.equal(value, other[key]) for key, value in first.items())


def test_conditions_and_units(folders: Folders) -> None:
    """A side must be a multiple of what the VAE, the network's halvings and its patches need."""
    expected = {
        "sd": ("text", (2, 4)),
        "sdxl": ("text", (2, 4)),
        "sd3": ("text", (2, 4)),
        "flux": ("text", (2, 4)),
        "pixart": ("text", (2, 4)),
        "dit": ("class", (2, 4)),
        "unet": ("none", (1, 2)),
        "unet-classes": ("class", (1, 2)),
    }
    for name, (condition, unit) in expected.items():
        network = build_network(network_spec(folders(name)))
        assert (condition_of(network), image_unit(str(folders(name)), network)) == (condition, unit)


# ---- prompts that are too long


def test_the_words_that_are_cut_are_named(folders: Folders) -> None:
    frozen = frozen_parts(str(folders("sd")))  # its tokenizer reads 16 tokens, two of them mark the ends
    assert frozen.unread_text("") == frozen.unread_text(PROMPT) == frozen.unread_text(" ".join(["cat"] * 14)) == ""
    assert frozen.unread_text(" ".join(["cat"] * 14) + " red dog") == "red dog"
    frozen.pipe.tokenizer.model_max_length = 77
    assert frozen.unread_text(" ".join(["cat"] * 75)) == ""
    assert frozen.unread_text(" ".join(["cat"] * 75) + " a blue dog") == "a blue dog"


@pytest.mark.parametrize(("name", "tokens"), [("pixart", 300), ("flux", 512), ("sd3", 256)])
def test_t5_is_cut_where_the_pipeline_cuts(name: str, tokens: int, folders: Folders) -> None:
    frozen = frozen_parts(str(folders(name)))
    fits = " ".join(["cat"] * (tokens - 1))  # and the end
    assert frozen.unread_text(fits) == ""
    assert frozen.unread_text(f"{fits} blue dog") == "blue dog"
    cut, whole = (frozen.encode([prompt], torch.device("cpu")) for prompt in (f"{fits} blue dog", fits))
    assert torch.equal(cut["prompt_embeds"], whole["prompt_embeds"])


def test_networks_without_text_cut_nothing(folders: Folders) -> None:
    assert frozen_parts(str(folders("dit"))).unread_text("word " * 1000) == ""


# ---- what is refused


@pytest.mark.parametrize("call", [check_pipeline_name, lambda name: build_network(network_spec(name))])
@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("unet/diffusion_pytorch_model.safetensors", r"unet holds no .safetensors file"),
        ("text_encoder/model.safetensors", r"text_encoder holds no .safetensors file"),
        ("vae", r"names vae, but there is no folder"),
        ("scheduler", r"names scheduler, but there is no folder"),
        ("model_index.json", r"it has no model_index.json"),
    ],
)
def test_a_part_that_is_missing_is_named(call: Any, missing: str, said: str, copied: Folders) -> None:
    folder = copied("sd")
    part = folder / missing
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink()
    assert said in refused(call, str(folder))


def test_weights_that_are_pickled_are_refused(copied: Folders) -> None:
    folder = copied("sd")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "safe_serialization=True" in refused(check_pipeline_name, str(folder))
    assert "vae" in refused(frozen_parts, str(folder))


def test_weights_of_another_network_are_refused(copied: Folders) -> None:
    folder = copied("unet")
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"block_out_channels": [8, 8]}))
    assert "its unet cannot be loaded" in refused(build_network, network_spec(folder))


def test_damaged_weights_are_refused(copied: Folders) -> None:
    folder = copied("unet")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "its unet cannot be loaded" in refused(build_network, network_spec(folder))


@pytest.mark.parametrize(
    ("part", "load"), [("unet", lambda name: build_network(network_spec(name))), ("vae", frozen_parts)]
)
def test_weights_that_are_not_all_there_are_refused(part: str, load: Any, copied: Folders) -> None:
    folder = copied("sd")
    file = folder / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    lacking = sorted(weights)[7]
    save_file({name: value for name, value in weights.items() if name != lacking}, file, {"format": "pt"})
    assert f"its {part} lack {lacking}" in refused(load, str(folder))


def test_a_pipeline_of_another_make_is_refused(copied: Folders) -> None:
    folder = copied("unet")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    message = refused(check_pipeline_name, str(folder))
    assert "KandinskyPipeline" in message
    assert all(name in message for family in pipeline.FAMILIES for name in family.pipelines)
    for text in ("{", "[1]", "3"):
        (folder / "model_index.json").write_text(text)
        assert "model_index.json cannot be read" in refused(check_pipeline_name, str(folder))


@pytest.mark.parametrize("name", ["small-unet", "smal_unet", "./none/there", "~/none/there", "a/b/c", "vit_tiny"])
def test_names_of_nothing_are_refused(name: str) -> None:
    message = refused(check_pipeline_name, name)
    assert name in message
    assert "small_unet" in message


def test_names_of_the_hub_are_not_looked_up() -> None:
    check_pipeline_name("owner/name")


def test_a_home_folder_is_found(copied: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied("dit")
    monkeypatch.setenv("HOME", str(folder.parent))
    network = build_network(network_spec("~/dit"))
    assert image_unit("~/dit", network) == (2, 4)
    assert frozen_parts("~/dit").factor == 2


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "find_spec", lambda name: None if name == "diffusers" else object())
    assert "pip install 'snella[diffusers]'" in refused(pipeline.check_diffusers)


def test_a_safety_checker_is_told(copied: Folders) -> None:
    folder = copied("sd")
    assert not pipeline.has_safety_checker(str(folder))
    index = folder / "model_index.json"
    entry = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    index.write_text(json.dumps(json.loads(index.read_text()) | entry))
    assert pipeline.has_safety_checker(str(folder))
    check_pipeline_name(str(folder))  # it is never loaded, so it may be missing
    assert frozen_parts(str(folder)).pipe.safety_checker is None
    assert not pipeline.has_safety_checker("small_unet")
