"""Layers of all kinds: each is the product with its weight and the update, whichever way it is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from snella import SnellaConfig, save_as_lora
from snella.errors import UserError
from support.tuned import grad_of, layers, tuned

KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {  # -> layer, an input, matrices
    "Conv1D": (lambda: Conv1D(6, 4), (3, 5, 4), 1),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (3, 4, 9), 1),
    "Conv3d": (lambda: nn.Conv3d(3, 4, (1, 2, 3), padding="same", dilation=2), (2, 3, 4, 5, 6), 1),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2, padding=1, padding_mode="reflect"), (2, 6, 5, 5), 2),
    "grouped Conv1d": (lambda: nn.Conv1d(6, 9, 2, groups=3), (2, 6, 7), 3),
    "depth-wise": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1), (2, 4, 5, 5), 1),
}


def adapted(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    base, _, _ = KINDS[kind]
    return tuned(nn.Sequential(base()), target_modules=["0"], **changes)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_gradients_are_those_of_the_adapted_weight(kind: str) -> None:
    model, (_, shape, matrices) = adapted(kind), KINDS[kind]
    (layer,) = layers(model)
    x = torch.randn(shape, requires_grad=True)
    assert len(layer.kept("default")) == matrices
    model(x).square().sum().backward()
    fused = {name: grad_of(p) for name, p in model.named_parameters() if p.requires_grad} | {"x": grad_of(x)}
    model.zero_grad()
    x.grad = None
    base: Any = layer.get_base_layer()
    plain, weight = base.weight, layer.weight  # differentiable
    del base.weight
    base.weight = weight
    y = base(x)
    y.square().sum().backward()
    del base.weight
    base.weight = plain
    torch.testing.assert_close(model(x), y)
    own = {name: grad_of(p) for name, p in model.named_parameters() if p.requires_grad} | {"x": grad_of(x)}
    for name in own:
        torch.testing.assert_close(fused[name], own[name], rtol=1e-3, atol=1e-4, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), y)
        torch.testing.assert_close(model(x[0]) if kind != "Conv1D" else model(x[:1])[0], y[0])
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(x), y)
    assert type(merged[0]) is type(base)


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_sees_its_own_part_of_the_weight_and_no_budget_is_no_update(kind: str) -> None:
    model, (_, shape, matrices) = adapted(kind), KINDS[kind]
    (layer,) = layers(model)
    x, base = torch.randn(shape), layer.get_base_layer()
    layer.kept("default")[0] = 0
    model(x).sum().backward()
    assert not grad_of(layer.snella_A["default"])[0].any()
    difference = (layer.weight - base.weight).detach()
    rows = difference.mT if kind == "Conv1D" else difference
    first, rest = rows[: len(rows) // matrices], rows[len(rows) // matrices :]
    assert not first.any()
    assert all(part.any() for part in rest.chunk(max(matrices - 1, 1))) or matrices == 1
    layer.kept("default").zero_()
    torch.testing.assert_close(model(x), base(x))


@pytest.mark.parametrize("kind", ["Conv1D", "Conv1d", "grouped", "depth-wise"])
def test_dropout_and_drop_path_leave_all_or_nothing_of_a_sample(kind: str) -> None:
    model, (_, shape, matrices) = adapted(kind, update_drop_path=0.5), KINDS[kind]
    (layer,) = layers(model)
    base, x = layer.get_base_layer(), torch.randn(1, *shape[1:]).repeat(16, *(1 for _ in shape[1:]))
    with torch.no_grad():
        whole = model.eval()(x) - base(x)
    update = (model.train()(x) - base(x)).detach()
    dim = -1 if kind == "Conv1D" else 1
    for part, full in zip(update.chunk(matrices, dim), whole.chunk(matrices, dim), strict=True):
        for sample, of_all in zip(part, full, strict=True):
            assert not sample.abs().max() > 1e-5 or torch.allclose(sample, 2 * of_all, rtol=1e-3, atol=1e-4)
    assert torch.isfinite(adapted(kind, update_dropout=0.5).train()(x)).all()


def test_a_pattern_passes_over_grouped_convolutions_as_before() -> None:
    model = tuned(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=2)), target_modules="0|1")
    assert [layer.name for layer in layers(model)] == ["0"]


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Embedding(5, 3), "is a Embedding, of whose whole table an update would be made"),
        (nn.MultiheadAttention(4, 2), "is a MultiheadAttention, whose in_proj_weight torch hands on"),
        (nn.ConvTranspose2d(2, 2, 2), "is a ConvTranspose2d, of which no update is made"),
        (nn.LayerNorm(4), "is a LayerNorm, not a product with a weight"),
    ],
)
def test_layers_that_an_update_does_not_suit_are_refused_by_name(module: nn.Module, said: str) -> None:
    with pytest.raises(UserError, match=said):
        tuned(nn.Sequential(module), target_modules=["0"])


def test_attention_s_output_is_adapted_in_and_out_of_torch_s_fast_path() -> None:
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0)
    model, x = tuned(block, target_modules=["out_proj", "linear1"]), torch.randn(2, 3, 8)
    y = model(x)
    y.sum().backward()
    assert grad_of(layers(model)[0].snella_A["default"]).any()
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), y)
        plain: Any = model.merge_and_unload()  # type: ignore[operator]
        torch.testing.assert_close(plain(x), y)


def test_gpt_2_is_adapted_by_default_and_its_lora_is_peft_s(tmp_path: Any) -> None:
    import transformers

    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=8, vocab_size=20)

    def gpt2() -> Any:
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(config).eval()

    settings = SnellaConfig(r=8, gate="hard", start_scale=5.0, fused_splits={"c_attn": 3}, modules_to_save=[])
    model = peft.get_peft_model(gpt2(), settings)
    ids = torch.arange(6)[None]
    expected: Tensor = model(ids).logits
    assert [len(layer.kept("default")) for layer in layers(model)] == [3]
    assert (expected - gpt2()(ids).logits).abs().max() > 1e-3
    save_as_lora(model, tmp_path / "own", 8)  # type: ignore[arg-type]
    from peft.tuners.lora import save_as_lora as of_peft

    of_peft(tmp_path / "peft", model, 8)
    for folder in ("own", "peft"):
        loaded = peft.PeftModel.from_pretrained(gpt2(), str(tmp_path / folder))
        torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-3, atol=1e-5)
