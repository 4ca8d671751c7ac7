"""What users of PEFT expect of a tuner."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any, Literal

import peft
import pytest
import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from timm.models import VisionTransformer
from torch import Tensor, nn

from snella import SnellaConfig, delta_weight
from snella.errors import UserError
from snella.tuner import SnellaLayer
from support.tuned import grad_of, layer_named, layers, tuned, tuner_of
from support.vits import tiny_vit


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_only_the_adapter_and_the_head_train(vit: nn.Module) -> None:
    model = tuned(vit)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("snella_" in name or "head.modules_to_save" in name for name in trainable)
    width, blocks = 24, 2
    per_block = 3 * (2 * width) + 2 * width + 2 * 5 * width  # n + m for q, k, v, proj, fc1 and fc2
    assert model.get_nb_trainable_parameters()[0] == blocks * (8 * per_block + 6 * 3) + 5 * width + 5


def test_published_parameter_count_of_vit_b() -> None:
    import timm

    with torch.device("meta"):
        model = peft.get_peft_model(timm.create_model("vit_base_patch16_224"), SnellaConfig(modules_to_save=[]))
    assert model.get_nb_trainable_parameters()[0] == 5_308_632


def test_the_published_start_is_nearly_zero() -> None:
    base = nn.Sequential(nn.Linear(768, 768))
    config = SnellaConfig.published(r=32, init_sparsity=0.5, target_modules=["0"])
    model = peft.get_peft_model(base, config)
    rms = layers(model)[0].get_delta_weight("default").square().mean().sqrt().item()
    assert rms == pytest.approx(2.6e-6, rel=0.1)  # METHOD of the published code, at sparsity 0.5


def test_a_fused_layer_is_three_matrices(vit: nn.Module, images: Tensor) -> None:
    model = tuned(vit, scale=1.0)
    layer = layer_named(model, "blocks.0.attn.qkv")
    kept = layer.kept("default").tolist()
    assert len(kept) == 3
    for i, part in enumerate(layer.get_delta_weight("default").chunk(3)):
        A, B = layer.snella_A["default"][i], layer.snella_B["default"][i]
        scalars = [getattr(layer, f"snella_{s}")["default"][i] for s in ("alpha", "gamma", "beta")]
        torch.testing.assert_close(part, delta_weight(A, B, *scalars, sparsity=0.5, gate="hard", scale=1.0))
        assert int((part != 0).sum()) == kept[i]
    assert model(images).shape == (3, 5)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_convolutions_of_any_kernel_size(padding_mode: Literal["zeros", "reflect"]) -> None:
    conv = nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, padding_mode=padding_mode)
    model = tuned(nn.Sequential(conv), r=4, target_modules=["0"])
    layer, x = layers(model)[0], torch.randn(2, 4, 9, 9)
    assert layer.snella_A["default"].shape == (1, 2, 4 * 3 * 2, 2)
    expected = copy.deepcopy(conv)
    expected.weight.data += layer.get_delta_weight("default").detach().view_as(conv.weight)
    torch.testing.assert_close(model(x), expected(x))


def test_save_and_load_the_adapter_only(vit: nn.Module, images: Tensor, python: str, tmp_path: Path) -> None:
    model = tuned(vit, total_step=4, target_sparsity=0.9).eval()
    with torch.no_grad():
        for layer in layers(model):
            layer.kept("default").sub_(3)
        expected = model(images)
    model.save_pretrained(str(tmp_path))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert all("snella_" in key or key.startswith("base_model.model.head.") for key in saved)
    budgets = {key: tensor for key, tensor in saved.items() if key.endswith("snella_kept")}
    assert len(budgets) == 8
    assert all(tensor.dtype == torch.int64 for tensor in budgets.values())
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "SNELLA"

    loaded = peft.PeftModel.from_pretrained(tiny_vit(), tmp_path).eval()
    assert torch.equal(loaded(images), expected)
    code = (
        "import peft, snella, sys; "
        "config = peft.PeftConfig.from_pretrained(sys.argv[1]); print(config.peft_type.value, config.r)"
    )
    shown = subprocess.run([python, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["SNELLA", "8"]


def test_loading_on_another_backbone_fails(vit: nn.Module, tmp_path: Path) -> None:
    tuned(vit).save_pretrained(str(tmp_path))
    with pytest.raises(RuntimeError, match="size mismatch"):
        peft.PeftModel.from_pretrained(tiny_vit(embed_dim=48), tmp_path)


def test_two_adapters(vit: nn.Module, images: Tensor) -> None:
    base = vit.eval()(images)
    model = tuned(vit, modules_to_save=[]).eval()  # PEFT allows one adapter at a time for modules that are saved whole
    first = model(images)
    model.add_adapter("other", SnellaConfig(r=6, heads=3, kernel="pwl", gate="hard", modules_to_save=[]))
    assert torch.equal(model(images), first)
    model.set_adapter("other")
    other = model(images)
    assert not torch.allclose(other, first)
    assert {n for n, p in model.named_parameters() if p.requires_grad and "default" in n} == set()
    tuner_of(model).set_adapter(["default", "other"])
    both = layers(model)[0]
    expected = both.get_delta_weight("default") + both.get_delta_weight("other") + both.get_base_layer().weight
    torch.testing.assert_close(both.weight, expected)
    model.set_adapter("default")
    assert torch.equal(model(images), first)
    with model.disable_adapter():
        assert torch.equal(model(images), base)
    model.delete_adapter("other")
    assert torch.equal(model(images), first)
    assert not any("other" in key for key in model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merge_and_unmerge(vit: nn.Module, images: Tensor, dtype: torch.dtype) -> None:
    model = tuned(vit.to(dtype)).eval()
    images = images.to(dtype)
    model.add_adapter("other", SnellaConfig(r=4, gate="hard"))
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    expected = model(images)
    model.merge_adapter()
    rtol, atol = (1e-5, 1e-5) if dtype == torch.float32 else (None, None)
    torch.testing.assert_close(model(images), expected, rtol=rtol, atol=atol)
    assert not torch.equal(
        vit.state_dict()["blocks.0.mlp.fc1.base_layer.weight"], before["blocks.0.mlp.fc1.base_layer.weight"]
    )
    model.unmerge_adapter()
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())

    model.merge_adapter()
    with model.disable_adapter():
        model(images)  # unmerges
        assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())
    plain = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(plain(images), expected, rtol=rtol, atol=atol)
    assert not any(isinstance(module, SnellaLayer | BaseTunerLayer) for module in plain.modules())


def test_safe_merge_refuses_what_is_not_finite(vit: nn.Module) -> None:
    model = tuned(vit)
    with torch.no_grad():
        layers(model)[0].snella_beta["default"].fill_(torch.nan)
    with pytest.raises(ValueError, match="non-finite; it is not merged"):
        model.merge_adapter(safe_merge=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_base_trains_with_factors_in_fp32(vit: nn.Module, images: Tensor, dtype: torch.dtype) -> None:
    model = tuned(vit.to(dtype))
    factors = {name: p for name, p in model.named_parameters() if "snella_" in name}
    assert {p.dtype for p in factors.values()} == {torch.float32}
    assert all(layer.kept("default").dtype == torch.int64 for layer in layers(model))
    model(images.to(dtype)).float().square().mean().backward()
    grads = [grad_of(p) for p in factors.values()]
    assert all(grad.isfinite().all() and grad.dtype == torch.float32 for grad in grads)


def test_autocast(vit: nn.Module, images: Tensor) -> None:
    model = tuned(vit).train()
    exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        near = model(images)
    near.float().square().mean().backward()
    torch.testing.assert_close(near.float(), exact, rtol=0.1, atol=0.1)
    assert all(grad.dtype == torch.float32 for grad in gradients(model).values())


def test_gradient_checkpointing_and_compile_change_nothing(images: Tensor) -> None:
    def run(prepare) -> dict[str, Tensor]:
        torch.manual_seed(5)
        model = tuned(tiny_vit()).train()
        prepare(model)(images).square().mean().backward()
        return {name.replace("_orig_mod.", ""): grad for name, grad in gradients(model).items()}

    def checkpointed(model: peft.PeftModel) -> nn.Module:
        base = model.get_base_model()
        assert isinstance(base, VisionTransformer)
        base.set_grad_checkpointing()
        return model

    plain = run(lambda model: model)
    assert plain
    for prepare in (checkpointed, lambda model: torch.compile(model, backend="aot_eager")):
        other = run(prepare)
        assert other.keys() == plain.keys()
        for name, grad in plain.items():
            torch.testing.assert_close(other[name], grad, rtol=1e-4, atol=1e-6)


def test_deepcopy_is_independent(vit: nn.Module, images: Tensor) -> None:
    model = tuned(vit).eval()
    expected = model(images)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer in layers(other):
            layer.snella_beta["default"].add_(1)
            layer.kept("default").zero_()
    assert torch.equal(model(images), expected)
    assert not torch.allclose(other(images), expected)


def test_evaluation_builds_the_update_once_until_something_changes(vit: nn.Module, images: Tensor) -> None:
    model = tuned(vit).eval()
    layer = layer_named(model, "blocks.1.mlp.fc1")
    with torch.no_grad():
        kept = layer.weight
        assert layer.weight is kept
        for change in (
            lambda: layer.snella_A["default"].mul_(2),
            lambda: layer.kept("default").sub_(50),
            lambda: layer.get_base_layer().weight.add_(1),
        ):
            before = model(images)
            change()
            assert not torch.equal(model(images), before)
            fresh = copy.deepcopy(layer)
            fresh._cached_weight = None
            assert torch.equal(layer.weight, fresh.weight)
    model.train()
    assert layer._cached_weight is None
    assert layer.weight.requires_grad


def test_models_that_read_the_weight_see_the_update() -> None:
    """timm's EVA with a fused qkv calls F.linear with `qkv.weight` and never the layer."""
    import timm

    torch.manual_seed(0)
    base = timm.create_model(
        "eva_giant_patch14_224", img_size=28, embed_dim=24, depth=1, num_heads=3, num_classes=5, mlp_ratio=2
    ).eval()
    x = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        plain = base(x)
        model = tuned(base, target_modules=["qkv"]).eval()
        assert not torch.allclose(model(x), plain)
        model.merge_adapter()
        with model.disable_adapter():
            assert torch.equal(model(x), plain)
    model.train()
    model(x).sum().backward()
    assert grad_of(layers(model)[0].snella_A["default"]).abs().sum() > 0


def test_drop_path_leaves_the_update_out_for_whole_samples() -> None:
    linear = nn.Linear(6, 9)
    model = tuned(nn.Sequential(linear), r=4, target_modules=["0"], update_drop_path=0.25).train()
    layer, x = layers(model)[0], torch.randn(4000, 3, 6)
    with torch.no_grad():
        base, update = linear(x), F.linear(x, layer.get_delta_weight("default"))
        extra = model(x) - base
        without = (extra == 0).flatten(1).all(1)
        torch.testing.assert_close(extra[~without], update[~without] / 0.75, rtol=1e-3, atol=1e-5)
        assert without.float().mean().item() == pytest.approx(0.25, abs=0.03)
        model.eval()
        torch.testing.assert_close(model(x), base + update)


def test_dropout_acts_on_the_input_of_the_update() -> None:
    linear = nn.Linear(6, 9)
    model = tuned(nn.Sequential(linear), r=4, target_modules=["0"], update_dropout=0.5).train()
    layer, x = layers(model)[0], torch.ones(20000, 6)
    with torch.no_grad():
        extra = model(x) - linear(x)
        delta = layer.get_delta_weight("default")
        torch.testing.assert_close(extra.mean(0), delta.sum(1), rtol=0.1, atol=0.01)
        torch.testing.assert_close(extra.var(0), delta.square().sum(1), rtol=0.1, atol=0.01)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("r", 7, "r=7 is not a positive multiple of heads=2; try r=8"),
        ("heads", 0, "not a positive multiple"),
        ("target_sparsity", 1.2, r"target_sparsity=1\.2 is outside \[0, 1\]"),
        ("kernel", "rbf", "kernel='rbf' is unknown; choose from mixk, pwl"),
        ("gate", "top", "gate='top' is unknown"),
        ("update_dropout", 1.0, r"outside \[0, 1\)"),
        ("allocate_every", 0, "allocate_every=0 is less than 1"),
        ("fused_splits", {"qkv": 0}, "less than 1"),
        ("fused_splits", {"attn.qkv": 3}, "not the last part of a name; write 'qkv'"),
    ],
)
def test_wrong_settings_are_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SnellaConfig(**{field: value})


def test_a_split_that_does_not_divide_is_named() -> None:
    with pytest.raises(UserError, match=r"0 has 10 outputs, not divisible into fused_splits\['0'\]=3"):
        tuned(nn.Sequential(nn.Linear(4, 10)), target_modules=["0"], fused_splits={"0": 3})
