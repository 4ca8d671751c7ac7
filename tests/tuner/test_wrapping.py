"""What a wrapped model leaves alone: statistics, output embeddings, and what torch.compile has put around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from snella import SnellaConfig, load_into_pipeline, unload_from_pipeline
from support.tiny_pipelines import write_unet
from support.tuned import adapter_parameters, layers, tuned
from support.vits import tiny_vit


def convnet() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8, track_running_stats=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


@pytest.mark.parametrize("calls_train", [False, True])
def test_an_adapter_trained_beside_batch_norms_is_the_same_when_loaded(
    images: Tensor, tmp_path: Path, calls_train: bool
) -> None:
    model = tuned(convnet(), target_modules=["0", "3"], modules_to_save=["7"])
    if calls_train:
        model.eval()
        model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        model(5 + 3 * images).square().sum().backward()
        optimizer.step()
    model.eval().save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(convnet(), str(tmp_path)).eval()
    assert torch.equal(loaded(images), model(images))


def test_a_batch_norm_that_trains_is_saved_with_its_statistics(images: Tensor, tmp_path: Path) -> None:
    model = tuned(convnet(), target_modules=["0"], modules_to_save=["1"]).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "running_mean" in name}
    model(5 + 3 * images).sum().backward()
    moved = [name for name, tensor in before.items() if not torch.equal(model.state_dict()[name], tensor)]
    assert moved == ["base_model.model.1.modules_to_save.default.running_mean"]
    model.eval().save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(convnet(), str(tmp_path)).eval()
    assert torch.equal(loaded(images), model(images))


def causal_model(tied: bool) -> Any:
    torch.manual_seed(0)
    kind: Any = transformers.LlamaConfig
    config = kind(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=tied, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize("tied", [False, True])
def test_all_linear_leaves_the_output_embedding_out(tied: bool) -> None:
    model = tuned(causal_model(tied), target_modules="all-linear")
    names = {layer.name for layer in layers(model)}
    assert len(names) == 7
    assert not any("lm_head" in name for name in names)


def test_merging_a_tied_output_embedding_leaves_the_input_embedding() -> None:
    base = causal_model(tied=True)
    before = base.model.embed_tokens.weight.clone()
    tokens = torch.arange(6)[None]
    model = tuned(base, target_modules=["lm_head", "q_proj"]).eval()
    for parameter in adapter_parameters(model).values():
        nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
        model.merge_adapter()
        assert torch.equal(base.model.embed_tokens.weight, before)
        torch.testing.assert_close(model(input_ids=tokens).logits, expected)
        model.unmerge_adapter()
        assert base.lm_head.base_layer.weight is base.model.embed_tokens.weight
        plain: Any = model.merge_and_unload()  # type: ignore[operator]
        torch.testing.assert_close(plain(input_ids=tokens).logits, expected)
    assert torch.equal(plain.model.embed_tokens.weight, before)


@pytest.mark.parametrize("head", [None, []])
def test_a_compiled_model_is_adapted_as_the_one_inside(images: Tensor, tmp_path: Path, head: list[str] | None) -> None:
    def compiled() -> Any:
        return torch.compile(tiny_vit().eval(), backend="eager")

    plain: Any = peft.inject_adapter_in_model(SnellaConfig(r=8, modules_to_save=head), tiny_vit().eval())
    for name, parameter in plain.named_parameters():
        if "snella_" in name:
            nn.init.normal_(parameter, std=0.3)
    state = peft.get_peft_model_state_dict(plain)
    with torch.no_grad():
        expected = plain(images)
        config = SnellaConfig(r=8, modules_to_save=head)
        handle = compiled()
        model: Any = peft.inject_adapter_in_model(config, handle, state_dict=state if head == [] else None)
        peft.set_peft_model_state_dict(model, state)
        torch.testing.assert_close(handle(images), expected)
        other = compiled()
        peft.inject_adapter_in_model(SnellaConfig(r=8, modules_to_save=[]), other)
        peft.set_peft_model_state_dict(other, {name: state[name] for name in state if "snella_" in name})
        assert torch.equal(layers(other)[0].snella_A["default"], layers(plain)[0].snella_A["default"])

        wrapped: Any = peft.get_peft_model(compiled(), SnellaConfig(r=8, modules_to_save=head)).eval()
        wrapped.save_pretrained(str(tmp_path))
        for base in (tiny_vit(), compiled()):
            loaded = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
            torch.testing.assert_close(loaded(images), wrapped(images))


def test_blocks_compiled_one_by_one_are_found(images: Tensor) -> None:
    base: Any = tiny_vit()
    for i, block in enumerate(base.blocks):
        base.blocks[i] = torch.compile(block, backend="eager")
    assert len(layers(tuned(base))) == 8


def test_a_compiled_network_of_a_pipeline_takes_an_adapter(tmp_path: Path) -> None:
    class Pipe:
        def __init__(self, unet: Any) -> None:
            self.unet = unet

    folder = write_unet(tmp_path / "pipeline", classes=3) / "unet"
    model = tuned(diffusers.UNet2DModel.from_pretrained(folder))
    for parameter in adapter_parameters(model).values():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(str(tmp_path / "adapter"))
    base = diffusers.UNet2DModel.from_pretrained(folder)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    pipe = Pipe(torch.compile(base, backend="eager"))
    load_into_pipeline(pipe, tmp_path / "adapter")
    merged = model.merge_and_unload()  # type: ignore[operator]
    assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in merged.state_dict().items())
    unload_from_pipeline(pipe)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
