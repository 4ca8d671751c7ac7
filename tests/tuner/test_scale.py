"""The scale of an update, checked against the update by its definition."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import peft
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from snella import SnellaConfig, delta_weight
from snella.delta import Gate
from snella.tuner import SnellaLayer
from support.tuned import Settings, layers, merged_settings, tuner_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

LAYERS = {
    "linear": (lambda: nn.Linear(12, 9), (4, 12)),
    "qkv": (lambda: nn.Linear(12, 3 * 6), (4, 12)),  # three matrices
    "conv": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 4, 7, 7)),
}


def made(kind: str) -> tuple[peft.PeftModel, SnellaLayer, Tensor]:
    """A tuned model of one layer, the layer, and an input."""
    make, shape = LAYERS[kind]
    model = tuned(_Named(make()) if kind == "qkv" else nn.Sequential(make()))
    return model, only_layer(model), torch.randn(shape)


class _Named(nn.Module):
    """A layer with the name that makes it three matrices."""

    def __init__(self, qkv: nn.Module) -> None:
        super().__init__()
        self.qkv = qkv

    def forward(self, x: Tensor) -> Tensor:
        return self.qkv(x)


def tuned(base: nn.Module, **overrides: object) -> peft.PeftModel:
    options = dict(r=8, gate="hard", init_sparsity=0.5, target_modules=["0", "qkv"], modules_to_save=[]) | overrides
    return peft.get_peft_model(base, SnellaConfig.published(**options))


def only_layer(model: nn.Module) -> SnellaLayer:
    (layer,) = layers(model)
    return layer


def defined(layer: SnellaLayer, adapter: str = "default") -> Tensor:
    """The unscaled update in the weight's shape, by `snella.delta_weight`."""
    deltas = []
    for i in range(len(layer.kept(adapter))):
        A, B = layer.snella_A[adapter][i], layer.snella_B[adapter][i]
        scalars = [getattr(layer, f"snella_{name}")[adapter][i] for name in ("alpha", "gamma", "beta")]
        deltas.append(delta_weight(A, B, *scalars, sparsity=0.5, gate="hard"))
    return torch.cat(deltas).view_as(layer.get_base_layer().weight)


def expected(layer: SnellaLayer, x: Tensor, delta: Tensor) -> Tensor:
    base = copy.deepcopy(layer.get_base_layer())
    weight = base.weight + delta
    if isinstance(base, nn.Conv2d):
        return F.conv2d(x, weight, base.bias, base.stride, cast("tuple[int, int]", base.padding))
    return F.linear(x, weight, base.bias)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("scale", [0.5, -2.0, 0.0])
def test_the_update_in_force_is_scale_times_the_update(kind: str, scale: float) -> None:
    model, layer, x = made(kind)
    delta = defined(layer)
    layer.set_scale("default", scale)
    torch.testing.assert_close(layer.get_delta_weight("default").view_as(delta), scale * delta)
    torch.testing.assert_close(layer.weight, layer.get_base_layer().weight + scale * delta)
    y = expected(layer, x, scale * delta)
    torch.testing.assert_close(model.train()(x), y)
    torch.testing.assert_close(model.eval()(x), y)
    with torch.no_grad():
        torch.testing.assert_close(model(x), y)


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_are_those_of_the_scaled_update(kind: str) -> None:
    model, layer, x = made(kind)
    layer.set_scale("default", 0.5)
    model(x).square().sum().backward()
    got = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected(layer, x, 0.5 * defined(layer)).square().sum().backward()
    assert set(got) > {"snella_A.default", "snella_B.default"}
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, layer.get_parameter(name).grad, rtol=1e-4, atol=1e-5)


def test_scale_one_changes_no_bit() -> None:
    model, layer, x = made("linear")
    untouched = model(x)
    layer.set_scale("default", 3.0)
    assert not torch.equal(model(x), untouched)
    layer.set_scale("default", 1.0)
    assert torch.equal(model(x), untouched)


def test_dropout_scales_the_update_too() -> None:
    base = nn.Sequential(nn.Linear(12, 9))
    model = tuned(base, update_dropout=0.5)
    layer, x = only_layer(model.train()), torch.randn(4, 12)
    plain = layer.get_base_layer()(x)
    updates = []
    for scale in (1.0, 0.25):
        layer.set_scale("default", scale)
        torch.manual_seed(5)
        updates.append(model(x) - plain)
    torch.testing.assert_close(updates[1], 0.25 * updates[0])


def test_evaluation_notices_another_scale() -> None:
    model, layer, x = made("linear")
    model.eval()
    with torch.no_grad():
        for scale in (1.0, 0.5, 2.0):
            layer.set_scale("default", scale)
            torch.testing.assert_close(model(x), expected(layer, x, scale * defined(layer)))
            assert layer.weight is layer.weight  # kept while nothing changes


@pytest.mark.parametrize("kind", LAYERS)
def test_merge_takes_the_scale_and_unmerge_forgets_it(kind: str) -> None:
    model, layer, x = made(kind)
    before, delta = layer.get_base_layer().weight.clone(), defined(layer)
    layer.set_scale("default", 0.5)
    layer.merge()
    torch.testing.assert_close(layer.get_base_layer().weight, before + 0.5 * delta)
    layer.set_scale("default", 4.0)  # as in PEFT: not what is merged
    torch.testing.assert_close(model(x), expected(layer, x, torch.zeros(())))
    layer.unmerge()
    assert torch.equal(layer.get_base_layer().weight, before)
    torch.testing.assert_close(model(x), expected(layer, x, 4 * delta))


def test_scaling_by_factors_acts_on_the_active_adapters_only() -> None:
    model, layer, x = made("linear")
    model.add_adapter("other", SnellaConfig(**{**model.peft_config["default"].to_dict(), "init_sparsity": 0.5}))
    first, second = defined(layer), defined(layer, "other")
    layer.scale_layer(0.5)
    layer.scale_layer(0.5)
    tuner_of(model).set_adapter(["default", "other"])
    torch.testing.assert_close(model(x), expected(layer, x, 0.25 * first + second))
    layer.scale_layer(2.0)
    torch.testing.assert_close(model(x), expected(layer, x, 0.5 * first + 2 * second))
    layer.unscale_layer(4.0)
    assert layer.scaling == {"default": 0.125, "other": 0.5}
    layer.unscale_layer()
    assert layer.scaling == {"default": 1.0, "other": 1.0}
    layer.set_scale("absent", 2.0)
    assert "absent" not in layer.scaling
    model.delete_adapter("other")
    assert layer.scaling == {"default": 1.0}


def test_the_scale_is_not_saved(tmp_path: Path) -> None:
    model, layer, x = made("linear")
    y = model(x)
    layer.set_scale("default", 0.0)
    model.save_pretrained(str(tmp_path))
    fresh = nn.Sequential(copy.deepcopy(layer.get_base_layer()))
    torch.testing.assert_close(peft.PeftModel.from_pretrained(fresh, tmp_path)(x), y)


def test_means_what_it_means_for_lora() -> None:
    """The same calls leave the same scales in a LoRA layer whose own scale is 1."""
    scales = []
    for config in (
        SnellaConfig(r=8, target_modules=["0"], modules_to_save=[]),
        peft.LoraConfig(r=8, lora_alpha=8, target_modules=["0"]),
    ):
        model = peft.get_peft_model(nn.Sequential(nn.Linear(12, 9)), config)
        layer: Any = model.get_submodule("base_model.model.0")
        seen = []
        for call in (("set_scale", "default", 0.5), ("scale_layer", 3), ("unscale_layer", 2), ("scale_layer", 1)):
            getattr(layer, call[0])(*call[1:])
            seen.append(layer.scaling["default"])
        layer.unscale_layer()
        scales.append([*seen, layer.scaling["default"]])
    assert scales[0] == scales[1] == [0.5, 1.5, 0.75, 0.75, 1.0]


@pytest.mark.parametrize("kind", LAYERS)
def test_smaller_factors_under_a_larger_constant_make_the_same_update(kind: str) -> None:
    """c ||a - b|| is 10 c ||a/10 - b/10||: only the size of an optimiser's step differs."""
    deltas = []
    for make_config in (SnellaConfig.published, SnellaConfig):
        torch.manual_seed(3)
        make, _ = LAYERS[kind]
        config = make_config(r=4, init_alpha=1.0, target_modules=["qkv" if kind == "qkv" else "0"])
        model = peft.get_peft_model(_Named(make()) if kind == "qkv" else nn.Sequential(make()), config)
        deltas.append(only_layer(model).get_delta_weight("default"))
    torch.testing.assert_close(deltas[1], deltas[0], rtol=1e-4, atol=1e-9)


def relative(weight: Tensor, **changes: Unpack[Settings]) -> SnellaLayer:
    """A layer with that weight (m, n) and the update that a seed draws for it."""
    base = nn.Linear(weight.shape[1], weight.shape[0])
    base.weight.data = weight
    torch.manual_seed(3)
    defaults: Settings = {"r": 4, "init_sparsity": 0.5, "target_modules": ["0"], "modules_to_save": []}
    config = SnellaConfig(**merged_settings(defaults, changes))
    return only_layer(peft.get_peft_model(nn.Sequential(base), config))


def give_factors(one: SnellaLayer, other: SnellaLayer) -> None:
    with torch.no_grad():
        for factors in ("snella_A", "snella_B"):
            getattr(other, factors)["default"].copy_(getattr(one, factors)["default"])


@pytest.mark.parametrize("gate", ["published", "soft", "hard", "none"])
@given(factor=st.floats(1e-3, 1e3))
def test_updates_are_in_proportion_to_the_frozen_weight(gate: Gate, factor: float) -> None:
    weight = torch.randn(9, 12)
    layer, other = (relative(w, gate=gate) for w in (weight, factor * weight))
    give_factors(layer, other)
    delta = layer.get_delta_weight("default")
    assert delta.any()
    torch.testing.assert_close(other.get_delta_weight("default"), factor * delta, rtol=1e-4, atol=1e-6 * factor)


@given(size=st.floats(1e-3, 1e3), scale=st.floats(0.1, 100))
def test_the_start_is_the_published_one_whatever_the_weight_and_the_constant(size: float, scale: float) -> None:
    start = relative(size * torch.randn(9, 12), relative_scale=scale, init_alpha=1.0)
    published = relative(torch.randn(9, 12), scale=0.1, init_alpha=1.0)
    torch.testing.assert_close(
        start.get_delta_weight("default"), published.get_delta_weight("default"), rtol=1e-3, atol=1e-7
    )


def test_the_constant_is_scale_times_the_root_of_the_weights_rms() -> None:
    layer = relative(torch.full((9, 12), -0.25), relative_scale=3.0)
    factors = (layer.snella_A["default"][0], layer.snella_B["default"][0])
    scalars = [getattr(layer, f"snella_{name}")["default"][0] for name in ("alpha", "gamma", "beta")]
    expected = delta_weight(*factors, *scalars, sparsity=0.5, scale=1.5)
    torch.testing.assert_close(layer.get_delta_weight("default"), expected)


@pytest.mark.parametrize("gate", ["hard", "none"])
def test_without_squaring_the_constant_is_a_tenth_over_the_rms_and_the_scalars_unit(gate: Gate) -> None:
    layer = relative(torch.full((9, 12), -0.25), relative_scale=3.0, init_alpha=0.5, gate=gate)
    factors = (layer.snella_A["default"][0], layer.snella_B["default"][0])
    with torch.no_grad():
        layer.snella_beta["default"].fill_(0.25)
    c = 0.1 * 3.0 * 0.25
    scalars = [c * getattr(layer, f"snella_{name}")["default"][0] for name in ("alpha", "gamma", "beta")]
    expected = delta_weight(*factors, *scalars, sparsity=0.5, scale=c, gate=gate)
    torch.testing.assert_close(layer.get_delta_weight("default"), expected)


@given(size=st.floats(1e-2, 10))
def test_without_squaring_an_update_starts_at_less_than_a_hundredth_of_its_weight(size: float) -> None:
    weight = size * torch.randn(48, 64)
    for gate in ("hard", "none"):
        delta = relative(weight, gate=gate, r=32).get_delta_weight("default")
        assert 0 < delta.square().mean() < 1e-4 * weight.square().mean()


def test_a_weight_of_zeros_counts_as_a_new_one() -> None:
    new, zeros = relative(torch.full((9, 12), 1 / math.sqrt(3 * 12))), relative(torch.zeros(9, 12))
    give_factors(new, zeros)
    torch.testing.assert_close(zeros.get_delta_weight("default"), new.get_delta_weight("default"))


def test_an_adapter_that_is_added_to_a_merged_layer_sees_the_frozen_weight() -> None:
    weight = torch.randn(9, 12)
    layer = relative(weight.clone(), gate="hard", relative_scale=9.0)
    merged = relative(weight.clone(), gate="hard", relative_scale=9.0)
    config = SnellaConfig(r=4, gate="hard")
    for one in (layer, merged):
        if one is merged:
            one.merge()
            assert not torch.equal(one.get_base_layer().weight, weight)
        torch.manual_seed(5)
        one.update_layer("other", config)
    assert torch.equal(layer.get_delta_weight("other"), merged.get_delta_weight("other"))


def test_a_relative_constant_is_part_of_the_state() -> None:
    layer = relative(torch.randn(9, 12))
    model = nn.Sequential(layer)
    expected = layer.get_delta_weight("default")

    wrapped = relative(100 * torch.randn(9, 12))  # as around a random base, whose weights are loaded later
    nn.Sequential(wrapped).load_state_dict(model.state_dict())
    assert torch.equal(wrapped.get_delta_weight("default"), expected)

    with torch.device("meta"):
        empty = relative(torch.empty(9, 12))
    nn.Sequential(empty).load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty.get_delta_weight("default"), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_the_same_on_another_base_and_after_a_cast(dtype: torch.dtype, tmp_path: Path) -> None:
    base = nn.Sequential(nn.Linear(12, 9))
    model = peft.get_peft_model(base, SnellaConfig(r=4, target_modules=["0"], modules_to_save=[]))
    scale = only_layer(model).settings["default"].spec.scale
    model.to(dtype).save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(nn.Sequential(nn.Linear(12, 9)), tmp_path)
    assert only_layer(loaded).settings["default"].spec.scale == scale


def test_an_adapter_with_one_constant_has_no_others_in_its_file() -> None:
    layer = relative(torch.randn(9, 12), scale=0.1)
    assert not any("snella_scale" in name for name in layer.state_dict())
    assert layer.settings["default"].spec.scale == 0.1


def test_a_deleted_adapter_leaves_no_constant() -> None:
    layer = relative(torch.randn(9, 12))
    layer.update_layer("other", SnellaConfig(r=4))
    layer.delete_adapter("other")
    assert set(layer.snella_scale) == {"default"}
