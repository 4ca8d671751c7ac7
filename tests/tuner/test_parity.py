"""The published numbers hold through the PEFT layer and through a whole ViT in training."""

from __future__ import annotations

from collections.abc import Iterator

import peft
import pytest
import torch
from timm.models import VisionTransformer
from torch import nn

from snella import SnellaConfig
from snella.delta import kept_count
from snella.tuner import SnellaLayer
from support.golden import reference, relative_error
from support.tuned import grad_of, layers, tuner_of

KERNELS, KERNEL_CASES = reference("kernels")


@pytest.mark.parametrize("case", range(len(KERNEL_CASES)))
def test_kernel_values_through_a_layer_with_zero_base_weight(case: int) -> None:
    meta = KERNEL_CASES[case]
    golden = {key.split(".", 1)[1]: tensor for key, tensor in KERNELS.items() if key.startswith(f"case{case}.")}
    linear = nn.Linear(meta["in_features"], meta["out_features"], bias=False)
    nn.init.zeros_(linear.weight)
    config = SnellaConfig.published(
        r=meta["rank"],
        heads=meta["heads"],
        scale=meta["scale"],
        kernel=meta["kernel"],
        init_sparsity=meta["sparsity"],
        target_modules=["0"],
    )
    model = peft.get_peft_model(nn.Sequential(linear), config).train()
    (layer,) = layers(model)
    names = {"A": "A", "B": "B", "alpha": "alpha", "gamma": "gamma", "beta": "beta"}
    inputs = {name: getattr(layer, f"snella_{name}")["default"] for name in names if name in golden}
    with torch.no_grad():
        for name, parameter in inputs.items():
            parameter.copy_(golden[name].view(parameter.shape))
    x = golden["x"].requires_grad_()

    y = model(x)
    y.backward(golden["grad_y"])

    assert relative_error(y, golden["y"]) <= 1e-5
    assert relative_error(layer.get_delta_weight("default"), golden["delta_weight"]) <= 1e-5
    assert int((layer.weight != 0).sum()) == meta["kept"]
    assert relative_error(x.grad, golden["grad_x"]) <= 1e-4
    for name, parameter in inputs.items():
        bound = 1e-4 if name in "AB" else 2e-3
        assert relative_error(grad_of(parameter).view(golden[name].shape), golden[f"grad_{name}"]) <= bound, name


def fused_vit(tensors: dict[str, torch.Tensor], cfg: dict) -> VisionTransformer:
    """The golden ViT's base weights in timm's VisionTransformer, q, k and v fused."""
    model = VisionTransformer(**cfg)
    base = {}
    for name in model.state_dict():
        if ".qkv." in name:
            parts = [tensors[f"init.{name.replace('.qkv.', f'.{part}.')}"] for part in "qkv"]
            base[name] = torch.cat(parts)
        else:
            base[name] = tensors[f"init.{name}"]
    model.load_state_dict(base)
    return model


def published_name(layer: str, part: int | None) -> str:
    """blocks.0.attn.qkv, 1 -> blocks.0.attn.additional_k.learnable"""
    parent, last = layer.rsplit(".", 1)
    return f"{parent}.additional_{last if part is None else 'qkv'[part]}.learnable"


def test_six_training_steps_of_the_published_vit() -> None:
    tensors, meta = reference("vit")
    base = fused_vit(tensors, meta["cfg"])
    steps = len(meta["losses"])
    config = SnellaConfig.published(
        r=meta["rank"],
        init_sparsity=meta["init_sparsity"],
        target_sparsity=meta["target_sparsity"],
        allocate_every=meta["update_every"],
        total_step=meta["update_every"] * meta["total_updates"],
    )
    model = peft.get_peft_model(base, config).train()
    assert base.cls_token is not None
    base.cls_token.requires_grad_()  # trained in the golden run, by accident of freezing
    by_name = {layer.name: layer for layer in layers(model)}
    factors = {"In_Qs": "A", "Out_Qs": "B", "alpha": "alpha", "gamma": "gamma", "beta": "beta"}

    def each_factor() -> Iterator[tuple[str, torch.Tensor]]:
        for name, layer in by_name.items():
            splits = len(layer.kept("default"))
            for i in range(splits):
                for golden_name, ours in factors.items():
                    key = f"{published_name(name, i if splits > 1 else None)}.{golden_name}"
                    yield key, getattr(layer, f"snella_{ours}")["default"][i]

    with torch.no_grad():
        for key, parameter in each_factor():
            parameter.copy_(tensors[f"init.{key}"].view(parameter.shape))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=meta["lr"], weight_decay=meta["weight_decay"]
    )
    trace = iter(meta["sparsity_trace"])
    assert_budgets(by_name, next(trace))
    for step in range(steps):
        logits = model(tensors[f"step{step}.x"])
        assert relative_error(logits, tensors[f"step{step}.logits"]) <= 1e-5, step
        loss = nn.functional.cross_entropy(logits, tensors[f"step{step}.y"])
        assert loss.item() == pytest.approx(meta["losses"][step], rel=1e-5)
        loss.backward()
        optimizer.step()
        if tuner_of(model).update_and_allocate(step + 1):
            assert_budgets(by_name, next(trace))
        optimizer.zero_grad()
    assert next(trace, None) is None
    for key, parameter in each_factor():
        assert relative_error(parameter, tensors[f"final.{key}"].view(parameter.shape)) <= 1e-3, key
    head = dict(model.named_parameters())["base_model.model.head.modules_to_save.default.weight"]
    assert relative_error(head, tensors["final.head.weight"]) <= 1e-3
    assert relative_error(base.cls_token, tensors["final.cls_token"]) <= 1e-3


def assert_budgets(by_name: dict[str, SnellaLayer], sparsities: dict[str, float]) -> None:
    for name, layer in by_name.items():
        kept = layer.kept("default").tolist()
        for i, k in enumerate(kept):
            sparsity = sparsities[published_name(name, i if len(kept) > 1 else None)]
            assert k == kept_count(sparsity, layer.matrix_size("default")), (name, i)
