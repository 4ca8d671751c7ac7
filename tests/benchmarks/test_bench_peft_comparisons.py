"""SNELLA's entries for PEFT's method comparisons: they load, and their sizes are those of the whole networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.memory import kept_bytes
from benchmarks.peft_image_gen import entries, sizes
from benchmarks.peft_image_gen.entries import ENTRIES, HERE
from benchmarks.peft_image_gen.networks import NETWORKS, Network, build
from benchmarks.peft_image_gen.sizes import Sizes, measure
from snella import SnellaConfig
from snella.training.memory import step_bytes
from support.tuned import layers, tuner_of

TINY = {
    "image": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "axes_dims_rope": (4, 4, 4, 4),
            "joint_attention_dim": 24,
            "in_channels": 8,
            "guidance_embeds": False,
        },
        (2, 3),
    ),
    "language": (
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
        (3,),
    ),
}
# Of PEFT's result files for the LoRAs beside the entries: trainable parameters, all, bytes of the adapter's file
PUBLISHED = {"image": (38_338_560, 3_913_883_136, 153_377_056), "language": (9_175_040, 3_221_924_864, 36_715_216)}


def network(name: str, **changes: Any) -> Network:
    if name == "image":
        pytest.importorskip("diffusers.models.transformers.transformer_flux2", reason="needs a newer diffusers")
    return replace(NETWORKS[name], **changes)


def tiny(name: str) -> Network:
    shapes, depth = TINY[name]
    return network(name, shapes=shapes, depth=depth, tokens=36)


@pytest.mark.parametrize("name", ENTRIES)
def test_the_committed_files_are_what_the_script_writes_and_peft_loads_them(name: str, tmp_path: Path) -> None:
    entry = ENTRIES[name]()
    written = entry.write(tmp_path)
    committed = HERE / entry.place
    assert {file.name for file in written.iterdir()} == {file.name for file in committed.iterdir()}
    for file in written.iterdir():
        here, there = (json.loads((folder / file.name).read_text()) for folder in (written, committed))
        for read in (here, there):
            read.pop("peft_version", None)
            read["target_modules"] = sorted(read.get("target_modules") or ())  # a set
        assert here == there
    loaded = peft.PeftConfig.from_pretrained(str(committed))
    assert isinstance(loaded, SnellaConfig)
    assert (loaded.r, loaded.target_sparsity, loaded.modules_to_save) == (32, 0.7, [])
    model = peft.get_peft_model(build(tiny(name), tiny(name).depth), loaded)
    lora = peft.get_peft_model(build(tiny(name), tiny(name).depth), entry.lora)
    adapted = {part for part, layer in lora.named_modules() if hasattr(layer, "lora_A")}
    assert {f"base_model.model.{layer.name}" for layer in layers(model)} == adapted


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_networks_are_those_of_pefts_results(name: str) -> None:
    whole = network(name)
    model = peft.get_peft_model(build(whole, whole.depth, device="meta"), ENTRIES[name]().lora)
    trainable, parameters = model.get_nb_trainable_parameters()
    assert (trainable, parameters) == PUBLISHED[name][:2]
    assert 0 < PUBLISHED[name][2] - 4 * trainable < 3e4  # what a file says of its tensors


@pytest.mark.parametrize("method", sizes.METHODS)
@pytest.mark.parametrize("name", TINY)
def test_what_is_counted_on_a_few_blocks_is_what_the_whole_has(name: str, method: str, tmp_path: Path) -> None:
    small, config = tiny(name), getattr(ENTRIES[name](), method)
    found = measure(small, lambda: getattr(ENTRIES[name](), method), tokens=(12, 24))

    torch.manual_seed(0)
    base = build(small, small.depth)
    if small.checkpointing:
        base.enable_gradient_checkpointing()
    model = peft.get_peft_model(base, config).train()
    inputs = small.inputs(small.shapes, small.samples, small.tokens)
    kept = kept_bytes(lambda: small.loss(model, inputs), model, inputs)
    assert found.kept == kept
    assert found.weights + found.trained + found.kept == step_bytes(model, kept)
    assert found.trainable == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    with pytest.warns(UserWarning, match="keeps") if method == "snella" else pytest.MonkeyPatch.context():
        model.save_pretrained(str(tmp_path))
    assert found.adapter == sum(t.nbytes for t in load_file(tmp_path / "adapter_model.safetensors").values())
    assert (found.block > 0) is small.checkpointing


def test_the_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sizes, "NETWORKS", {"language": tiny("language")})
    assert sizes.main(["--networks", "language", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "peft-comparisons.json").read_text())["networks"]["language"]
    assert Sizes(**found["snella"]).step > 0
    printed = capsys.readouterr().out
    assert all(method in printed for method in sizes.METHODS)
    assert entries.main([str(tmp_path / "none")]) == 2
    assert entries.main([str(tmp_path)]) == 0
    assert len(list(tmp_path.rglob("adapter_config.json"))) == len(ENTRIES)


def test_a_training_step_of_an_entry_moves_its_budgets() -> None:
    small = tiny("language")
    model = peft.get_peft_model(build(small, small.depth), ENTRIES["language"]().snella).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-5)
    inputs = small.inputs(small.shapes, small.samples, small.tokens)
    small.loss(model, inputs).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    tuner_of(model).update_and_allocate(1)
    share = tuner_of(model).kept_share()
    assert share is not None
    assert share.kept < share.size
