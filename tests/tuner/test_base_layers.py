"""Models whose frozen weights are kept in fewer bits: every method sees the rounded values, and merges into them."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import timm
import torch
from torch import Tensor, nn

from snella import set_base_precision
from snella.config.method import METHODS, MethodConfig
from snella.config.validation import NOT_PACKED
from snella.errors import UserError
from snella.methods.adapters import merged, wrap
from snella.ops import is_packed
from snella.training.memory import weight_bytes
from snella.tuner import SnellaConfig

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=32, num_classes=3)


def step(model: nn.Module) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return loss, logits in evaluation, and gradients."""
    torch.manual_seed(2)
    loss = model.train()(IMAGES).square().mean()
    loss.backward()
    with torch.no_grad():
        logits = model.eval()(IMAGES)
    return loss.detach(), logits, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("method", "form"),
    [*((method, "int8") for method in METHODS if method not in NOT_PACKED), ("snella", "nf4"), ("lora", "bf16")],
)
def test_every_method_trains_as_on_the_rounded_model(method: str, form: str) -> None:
    found = []
    for packed in (True, False):
        base = vit()
        assert set_base_precision(base, form) == 25
        if not packed:
            assert set_base_precision(base, "fp32") == 25
        torch.manual_seed(1)
        model = wrap(base, MethodConfig(name=method, r=4), total_step=20)
        found.append(step(model))
        if packed:
            set_base_precision(model, "fp32")
            plain: Any = merged(method, model)
            with torch.no_grad():
                torch.testing.assert_close(plain(IMAGES), found[0][1], rtol=1e-4, atol=1e-4)
            assert not any(map(is_packed, plain.parameters()))
    (loss, logits, gradients), (other_loss, other_logits, other_gradients) = found
    torch.testing.assert_close((loss, logits), (other_loss, other_logits))
    assert gradients
    torch.testing.assert_close(gradients, other_gradients)


def test_merging_a_layer_and_back() -> None:
    base = vit()
    set_base_precision(base, "int8")
    model: Any = peft.get_peft_model(base, SnellaConfig(r=4, total_step=10))  # type: ignore[arg-type]
    before = step(model)[1]
    with torch.no_grad():
        model.merge_adapter()
        assert torch.equal(model(IMAGES), before)
        model.unmerge_adapter()
        assert torch.equal(model(IMAGES), before)
    assert is_packed(model.base_model.model.blocks[0].attn.qkv.base_layer.weight)


def test_the_head_stays_and_trains_and_a_weight_of_two_layers_stays_one() -> None:
    base: Any = vit()
    base.blocks[1].attn.qkv.weight = base.blocks[0].attn.qkv.weight
    small = weight_bytes(base) / 2
    assert set_base_precision(base, "int8") == 24
    assert weight_bytes(base) < small
    assert base.blocks[1].attn.qkv.weight is base.blocks[0].attn.qkv.weight
    assert base.head.weight.requires_grad
    assert not is_packed(base.head.weight)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(UserError, match="base precision 'int4' is unknown; choose from fp32, bf16, int8, nf4"):
        set_base_precision(vit(), "int4")
    model = peft.get_peft_model(vit(), SnellaConfig(r=4, total_step=10))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="has an adapter already; set its base precision nf4 before it is wrapped"):
        set_base_precision(model, "nf4")
