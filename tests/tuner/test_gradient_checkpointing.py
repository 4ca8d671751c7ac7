"""The libraries' own gradient checkpointing around adapted layers: the same gradients, with any rematerialize."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from support.tuned import tuned

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def transformers_vit() -> tuple[nn.Module, Callable[[Any], None]]:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, patch_size=8, **sizes))
    options = {"gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return model, lambda wrapped: wrapped.gradient_checkpointing_enable(**options)


def timm_vit() -> tuple[nn.Module, Callable[[Any], None]]:
    model = timm.create_model("test_vit", img_size=32, num_classes=3)
    return model, lambda wrapped: wrapped.get_base_model().set_grad_checkpointing()


def diffusers_unet() -> tuple[nn.Module, Callable[[Any], None]]:
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
    )
    return model, lambda wrapped: wrapped.get_base_model().enable_gradient_checkpointing()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(2)
    y = model(IMAGES) if not type(model.get_base_model()).__name__.startswith("UNet") else model(IMAGES, timestep=5)  # pyright: ignore
    y = getattr(y, "logits", getattr(y, "sample", y))
    y.square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("rematerialize", [False, True, "mlp"])
@pytest.mark.parametrize("make", [timm_vit, transformers_vit, diffusers_unet])
def test_gradients_stay_the_same(make: Callable[[], Any], rematerialize: Any) -> None:
    base, switch = make()
    torch.manual_seed(0)
    plain = tuned(copy.deepcopy(base), rematerialize=rematerialize, sample_tokens=0.5).train()
    torch.manual_seed(0)
    model = tuned(base, rematerialize=rematerialize, sample_tokens=0.5).train()
    switch(model)
    wanted, found = gradients(plain), gradients(model)
    assert wanted
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []
