"""An adapter fits the model that it is loaded into, or the error names what does not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from snella import SnellaConfig
from snella.errors import UserError
from snella.tuner.names import counterparts
from support.tuned import adapter_parameters, layers, tuned, tuner_of
from support.vits import tiny_vit

# Layers as transformers 4.57 and 5.24 call them, read from models of either.
PAIRS = {
    "vit": [
        ("vit.encoder.layer.0.attention.attention.query", "vit.layers.0.attention.q_proj"),
        ("vit.encoder.layer.0.attention.attention.key", "vit.layers.0.attention.k_proj"),
        ("vit.encoder.layer.0.attention.attention.value", "vit.layers.0.attention.v_proj"),
        ("vit.encoder.layer.0.attention.output.dense", "vit.layers.0.attention.o_proj"),
        ("vit.encoder.layer.11.intermediate.dense", "vit.layers.11.mlp.fc1"),
        ("vit.encoder.layer.11.output.dense", "vit.layers.11.mlp.fc2"),
    ],
    "dinov2": [
        ("dinov2.encoder.layer.1.attention.attention.query", "dinov2.encoder.layer.1.attention.q_proj"),
        ("dinov2.encoder.layer.1.attention.output.dense", "dinov2.encoder.layer.1.attention.o_proj"),
    ],
    "dinov3": [("layer.0.attention.q_proj", "model.layer.0.attention.q_proj")],
    "swin backbone": [
        ("encoder.layers.0.blocks.0.attention.self.key", "swin.encoder.layers.0.blocks.0.attention.k_proj"),
        ("encoder.layers.0.blocks.0.attention.output.dense", "swin.encoder.layers.0.blocks.0.attention.o_proj"),
        ("encoder.layers.0.blocks.0.intermediate.dense", "swin.encoder.layers.0.blocks.0.mlp.fc1"),
        ("encoder.layers.0.blocks.0.output.dense", "swin.encoder.layers.0.blocks.0.mlp.fc2"),
    ],
    "clip, siglip": [
        ("vision_model.encoder.layers.0.self_attn.out_proj", "encoder.layers.0.self_attn.out_proj"),
        ("vision_model.encoder.layers.0.mlp.fc1", "encoder.layers.0.mlp.fc1"),
    ],
    "segformer": [
        ("segformer.encoder.block.2.1.attention.self.value", "segformer.stages.2.blocks.1.attention.v_proj"),
        ("segformer.encoder.block.2.1.mlp.dense2", "segformer.stages.2.blocks.1.mlp.fc2"),
        ("decode_head.linear_c.3.proj", "decode_head.linear_projections.3.proj"),
    ],
    "beit's upernet": [
        ("decode_head.psp_modules.1.1.conv", "decode_head.psp_modules.blocks.1.conv.convolution"),
        ("decode_head.bottleneck.conv", "decode_head.psp_bottleneck.convolution"),
        ("decode_head.fpn_bottleneck.conv", "decode_head.fpn_bottleneck.convolution"),
        ("decode_head.fpn_convs.0.conv", "decode_head.fpn_convs.0.convolution"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("pairs", PAIRS.values(), ids=PAIRS.keys())
def test_renamed_layers_are_found_both_ways(pairs: list[tuple[str, str]]) -> None:
    old, new = zip(*pairs, strict=True)
    assert counterparts(old, new) == dict(pairs)
    assert counterparts(new, old) == {b: a for a, b in pairs}


def test_names_of_two_layers_stand_for_neither() -> None:
    assert counterparts(["a.output.dense"], ["a.mlp.fc2", "a.output.dense", "b"]) == {}


def hf_vit() -> transformers.ViTForImageClassification:
    torch.manual_seed(3)
    kind: Any = transformers.ViTConfig
    return transformers.ViTForImageClassification(
        kind(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=48,
            image_size=32,
            patch_size=8,
            num_labels=3,
        )
    )


FIVE = int(transformers.__version__.split(".")[0]) >= 5


def as_the_other_version(name: str) -> str:
    """What the other version of transformers calls a ViT's tensor."""
    four = r"vit\.encoder\.layer\."
    if FIVE:
        name = re.sub(r"vit\.layers\.", "vit.encoder.layer.", name)
        for letter, word in (("q", "query"), ("k", "key"), ("v", "value")):
            name = name.replace(f"attention.{letter}_proj", f"attention.attention.{word}")
        name = name.replace("attention.o_proj", "attention.output.dense")
        return name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
    name = re.sub(four, "vit.layers.", name)
    name = re.sub(r"attention\.attention\.([qkv])\w+", r"attention.\1_proj", name)
    name = name.replace("attention.output.dense", "attention.o_proj")
    return name.replace("intermediate.dense", "mlp.fc1").replace("output.dense", "mlp.fc2")


def renamed(saved: Path, folder: Path) -> Path:
    """The adapter as the other version of transformers would have saved it."""
    shutil.copytree(saved, folder)
    file = folder / "adapter_model.safetensors"
    state = {as_the_other_version(name): tensor for name, tensor in load_file(file).items()}
    save_file(state, file, {"format": "pt"})
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Tensor]:
    """An adapter of transformers' ViT, and what the model gives with it."""
    model = tuned(hf_vit()).eval()
    for parameter in adapter_parameters(model).values():
        nn.init.normal_(parameter)
    model.save_pretrained(str(tmp_path / "saved"))
    return tmp_path / "saved", logits(model)


def logits(model: nn.Module) -> Tensor:
    pictures = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(pixel_values=pictures).logits


def test_an_adapter_of_the_other_version_of_transformers_is_the_same(
    saved: tuple[Path, Tensor], tmp_path: Path
) -> None:
    folder, expected = saved
    other = renamed(folder, tmp_path / "renamed")
    model = peft.PeftModel.from_pretrained(hf_vit(), str(other)).eval()
    assert torch.equal(logits(model), expected)
    model.load_adapter(str(other), "second")
    model.set_adapter("second")
    assert torch.equal(logits(model), expected)

    bare: Any = hf_vit()
    config = peft.PeftConfig.from_pretrained(str(other))
    peft.inject_adapter_in_model(config, bare)
    state = load_file(other / "adapter_model.safetensors")
    peft.set_peft_model_state_dict(bare, {name.removeprefix("base_model.model."): state[name] for name in state})
    assert torch.equal(logits(bare.eval()), expected)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "renamed"])
def test_what_does_not_fit_is_named(saved: tuple[Path, Tensor], fault: str, tmp_path: Path) -> None:
    folder, _ = saved
    file = folder / "adapter_model.safetensors"
    state = load_file(file)
    name = next(key for key in state if key.endswith("snella_alpha"))
    if fault == "missing":
        del state[name]
    elif fault == "unexpected":
        state[name.replace("layer", "lair")] = state[name].clone()
    else:
        state = {key.replace("layer", "lair"): tensor for key, tensor in state.items()}
    save_file(state, file, {"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    config["versions"]["transformers"] = "3.0.0"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    short = re.escape(name.removeprefix("base_model.model."))
    wanted = short if fault == "missing" else short.replace("layer", "lair")
    for load in (
        lambda: peft.PeftModel.from_pretrained(hf_vit(), str(folder)),
        lambda: tuned(hf_vit()).load_adapter(str(folder), "second"),
    ):
        with pytest.raises(
            UserError, match=f"does not fit this ViTForImage.*{wanted if fault != 'renamed' else ''}"
        ) as error:
            load()
        assert f"transformers 3.0.0 (here {transformers.__version__})" in str(error.value)
        assert "\n" not in str(error.value)
        assert fault != "renamed" or "lair" in str(error.value)


def test_explicit_targets_of_the_other_version_are_taken_and_said() -> None:
    names = ["query", "value"] if FIVE else ["q_proj", "v_proj"]
    with pytest.warns(UserWarning, match=f"target_modules of another version of transformers: here '{names[0]}' is "):
        model = tuned(hf_vit(), target_modules=names)
    plain = tuned(hf_vit(), target_modules=["q_proj", "v_proj"] if FIVE else ["query", "value"])
    assert adapter_parameters(model).keys() == adapter_parameters(plain).keys()


def test_a_part_of_another_adapters_state_is_loaded_as_ever(vit: nn.Module) -> None:
    model = tuned(vit)
    model.add_adapter("other", SnellaConfig(r=4))
    state = {name: tensor for name, tensor in model.state_dict().items() if "other" in name or "head" in name}
    model.load_state_dict(state, strict=False)
    model.load_state_dict({"base_model.model.norm.weight": torch.ones(24)}, strict=False)


def test_a_model_without_its_adapter_loads_as_before(vit: nn.Module) -> None:
    hooks = len(vit._load_state_dict_pre_hooks)
    plain = tuned(vit).merge_and_unload()  # type: ignore[operator]
    assert len(plain._load_state_dict_pre_hooks) == hooks
    plain.load_state_dict(tiny_vit().state_dict())


def test_the_folder_says_how_it_is_loaded_and_what_made_it(saved: tuple[Path, Tensor]) -> None:
    folder, _ = saved
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["versions"]["transformers"] == transformers.__version__
    assert config["versions"].keys() == {"transformers", "timm", "torch", "peft", "snella"}
    assert "import snella" in config["requires"]
    card = (folder / "README.md").read_text()
    assert "`import snella` before PEFT" in card
    assert f"transformers {transformers.__version__}" in card
    assert "keeps 50.0% of its update's entries, and 30.0% was asked for" in card


def test_an_adapter_away_from_its_target_is_told_once(vit: nn.Module, tmp_path: Path) -> None:
    model = tuned(vit)
    with pytest.warns(UserWarning, match=r"keeps 50\.0% .* and 30\.0% was asked for.*cut_to_target"):
        model.save_pretrained(str(tmp_path))
    tuner_of(model).cut_to_target()
    model.save_pretrained(str(tmp_path))
    card = (tmp_path / "README.md").read_text()
    assert card.count("was asked for") == 1
    assert "keeps 30.0%" in card
    loaded = peft.PeftModel.from_pretrained(tiny_vit(), str(tmp_path))
    for layer in layers(loaded):
        share = layer.get_delta_weight("default").count_nonzero() / layer.get_base_layer().weight.numel()
        assert share.item() == pytest.approx(0.3, abs=0.01)


def test_an_adapter_without_any_tensor_of_an_update_is_refused(tmp_path: Path) -> None:
    tuned(tiny_vit()).save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_model.safetensors"
    heads = {name: tensor for name, tensor in load_file(file).items() if "snella_" not in name}
    save_file(heads, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"none of its {len(heads)} tensors is of an update"):
        peft.PeftModel.from_pretrained(tiny_vit(), str(tmp_path))
