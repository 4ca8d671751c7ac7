"""Gradient checkpointing of blocks: the same gradients to the bit, in less memory, for whatever wraps the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from snella.config.method import MethodConfig
from snella.methods.adapters import wrap
from snella.models.checkpointing import blocks_of, checkpoint_blocks
from snella.training.memory import Storages
from support.vits import tiny_vit

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def step(model: nn.Module) -> tuple[dict[str, Tensor], int]:
    """Return the gradients of a step, and the bytes that its forward pass keeps besides weights and images."""
    torch.manual_seed(3)  # of dropout and drop-path
    with Storages() as storages:
        y = model(IMAGES)
        loss = getattr(y, "logits", y).square().mean()
        del y
    kept = storages.alive((IMAGES, loss, *model.parameters(), *model.buffers()))
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, kept


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def convnext() -> nn.Module:
    return timm.create_model("test_convnext", num_classes=5, drop_path_rate=0.3)


def swin() -> nn.Module:
    sizes: Any = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 12}
    return timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 2), num_heads=(2, 2), num_classes=5, **sizes)


def hf_vit() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, patch_size=8, **sizes))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": tiny_vit,
    "convnext": convnext,
    "swin": swin,
    "hf_vit": hf_vit,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "method",
    [
        MethodConfig(name="snella", r=4, update_drop_path=0.2, rematerialize="none"),
        MethodConfig(name="snella", r=4),
        MethodConfig(name="snella", r=4, rematerialize="mlp", sample_tokens=0.5),
        MethodConfig(name="lora", r=4, update_dropout=0.2),
        MethodConfig(name="full"),
    ],
    ids=["snella-none", "snella", "snella-mlp-sampled", "lora", "full"],
)
def test_gradients_stay_the_same_to_the_bit_in_less_memory(name: str, method: MethodConfig) -> None:
    torch.manual_seed(0)
    base = MODELS[name]()
    torch.manual_seed(0)
    plain = wrap(copy.deepcopy(base), method).train()
    torch.manual_seed(0)
    assert checkpoint_blocks(base) >= 2
    model = wrap(base, method).train()
    wanted, kept = step(plain)
    found, less = step(model)
    assert_same(found, wanted)
    assert less < 0.75 * kept


@pytest.mark.parametrize(
    ("name", "count"),
    [("vit_small_patch16_224", 12), ("resnet50", 16), ("regnety_002", 11), ("convnext_tiny", 18), ("vgg11", 0)],
)
def test_the_blocks_of_families(name: str, count: int) -> None:
    with torch.device("meta"):
        assert len(blocks_of(timm.create_model(name))) == count


def test_the_first_blocks_alone() -> None:
    model = tiny_vit().train()
    kept = []
    for count in (0, 1, 2, None, 0):
        assert checkpoint_blocks(model, count) == 2
        model.zero_grad()
        kept.append(step(model)[1])
    assert kept[0] > kept[1] > kept[2] == kept[3]
    assert kept[4] == kept[0]


def test_a_copy_is_the_copy_s_own() -> None:
    model = tiny_vit().train()
    checkpoint_blocks(model)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert step(other)[0].keys() == step(model)[0].keys()
    assert not model(IMAGES).equal(other(IMAGES))


def test_averages_of_batch_norms_move_once() -> None:
    plain = timm.create_model("test_resnet", num_classes=5).train()
    model = copy.deepcopy(plain)
    assert checkpoint_blocks(model) >= 2
    assert_same(step(model)[0], step(plain)[0])
    for (name, one), other in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(one, other), name
    for net in (plain, model):
        net.zero_grad()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    (wanted, kept), (found, less) = step(plain), step(model)
    assert_same(found, wanted)
    assert less < 0.8 * kept


def test_a_forward_that_somebody_else_has_put_there_stays() -> None:
    model = tiny_vit().train()
    first = blocks_of(model)[0]
    own = first.forward
    calls = []
    first.forward = lambda x: calls.append(1) or own(x)
    assert checkpoint_blocks(model) == 1
    step(model)
    assert calls == [1]


def test_a_network_s_own_switch_is_off_where_some_blocks_are_asked_for() -> None:
    diffusers = pytest.importorskip("diffusers")
    sizes = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    model = diffusers.UNet2DModel(sample_size=32, norm_num_groups=4, attention_head_dim=8, **sizes).train()
    kept = []
    for count in (0, 1, None, 1, 0):
        assert checkpoint_blocks(model, count) > 1
        with Storages() as storages:
            loss = model(IMAGES, timestep=5).sample.square().mean()
        kept.append(storages.alive((IMAGES, loss, *model.parameters(), *model.buffers())))
        assert model.is_gradient_checkpointing == (count is None)
        del loss
    assert kept[0] > kept[1] > kept[2]
    assert kept[3:] == [kept[1], kept[0]]
