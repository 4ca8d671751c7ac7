from typing import Any

import pytest
import timm
import torch
from torch import nn

from snella.config.method import MethodConfig
from snella.methods.adapters import after_step, load_adapter, save_adapter, wrap

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 0])
STEPS = 12


def base(kind: str = "vit") -> Any:
    torch.manual_seed(0)
    if kind == "resnet":
        return timm.create_model("test_resnet", num_classes=3, zero_init_last=False).eval()
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=3
    ).eval()


def tuned(method: str, kind: str = "vit", **settings: Any) -> tuple[Any, Any]:
    total_step = settings.pop("total_step", STEPS)
    model = wrap(base(kind), MethodConfig(name=method, **{"r": 4, **settings}), total_step=total_step)
    return model, after_step(method, model)


def train(model: Any, hook: Any, steps: range) -> list[dict]:
    """SGD without a memory, so that a run can be cut anywhere; returns the records."""
    records = []
    for step in steps:
        nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter -= 0.1 * parameter.grad
        if (record := hook(step)) is not None:
            records.append(record)
        model.zero_grad()
    return records


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IMAGES)


@pytest.mark.parametrize("method", ["snella", "adalora"])
@pytest.mark.parametrize("cut", [1, 5, 11])  # before any change, between changes, after the last of adalora's
def test_a_run_that_is_cut_and_goes_on_ends_with_the_same_bits(method, cut):
    settings: dict[str, Any] = {"init_warmup": 2, "allocate_every": 2}
    model, hook = tuned(method, **settings)
    whole = train(model, hook, range(1, STEPS + 1))

    first, first_hook = tuned(method, **settings)
    records = train(first, first_hook, range(1, cut + 1))
    saved, state = weights(first), {name: tensor.clone() for name, tensor in first_hook.state_dict().items()}
    train(first, first_hook, range(cut + 1, STEPS + 1))  # must not reach into what was saved
    second, second_hook = tuned(method, **settings)
    second.load_state_dict(saved)
    second_hook.load_state_dict(state)
    records += train(second, second_hook, range(cut + 1, STEPS + 1))

    assert records == whole
    assert len(whole) > 1
    assert all(torch.equal(tensor, weights(second)[name]) for name, tensor in weights(model).items())


def test_adaloras_ranks_fall_to_the_average_asked_for():
    model, hook = tuned("adalora", final_warmup=3)
    records = train(model, hook, range(1, STEPS + 1))
    assert records[-1]["step"] == STEPS - 3
    budgets = [record["budget"] for record in records]
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[-1] == 4 * 8  # r, on average over 8 layers
    last = records[-1]
    assert last["kept"].keys() == last["size"].keys()
    assert set(last["size"].values()) == {6}
    used = {name: int((module.lora_E["default"] != 0).sum()) for name, module in layers(model)}
    assert used == last["kept"]


def layers(model: Any) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.base_model.model.named_modules() if hasattr(module, "lora_E")]


def test_weights_of_before_the_ranks_fell_are_saved_whole(tmp_path):
    model, hook = tuned("adalora", init_warmup=3)
    train(model, hook, range(1, 4))
    best, expected = weights(model), logits(model)
    train(model, hook, range(4, STEPS + 1))
    model.load_state_dict(best)  # as when the best epoch was an early one
    pattern = model.peft_config["default"].rank_pattern
    save_adapter("adalora", model, tmp_path)
    assert model.peft_config["default"].rank_pattern == pattern
    torch.testing.assert_close(logits(load_adapter("adalora", base(), tmp_path)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_layer_that_lost_all_its_ranks_is_saved_and_loaded(kind, tmp_path):
    model, hook = tuned("adalora", kind)
    train(model, hook, range(1, STEPS + 1))
    with torch.no_grad():
        layers(model)[1][1].lora_E["default"].zero_()
    expected = logits(model)
    save_adapter("adalora", model, tmp_path)
    torch.testing.assert_close(logits(load_adapter("adalora", base(kind), tmp_path)), expected, rtol=0, atol=1e-6)


def test_adalora_leaves_a_step_out_whose_gradients_are_not_finite():
    model, hook = tuned("adalora")
    train(model, hook, range(1, 3))
    before = {name: tensor.clone() for name, tensor in hook.state_dict().items()}
    for _, module in layers(model):
        module.lora_A["default"].grad = torch.full_like(module.lora_A["default"], torch.nan)
    assert hook(3) is None
    after = hook.state_dict()
    assert after.pop("skipped") == 1
    before.pop("skipped")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    model.zero_grad()
    assert train(model, hook, range(4, STEPS + 1))[-1]["skipped"] == 1


def test_snell_is_bounded_where_that_is_asked_for_and_keeps_its_budgets() -> None:
    assert tuned("snell")[1] is None
    model, hook = tuned("snell", max_travel=0.2)
    layers = model.base_model.adapted_layers()
    before = [layer.delta_matrices("default").detach() for layer in layers]
    kept = [layer.kept("default").clone() for layer in layers]
    nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter += torch.randn_like(parameter)  # far beyond any share
    assert hook(1) is None
    assert all(map(torch.equal, kept, [layer.kept("default") for layer in layers]))
    for layer, old in zip(layers, before, strict=True):
        size = (layer.delta_matrices("default") - old).square().mean().sqrt()
        assert size < 0.5 * layer.get_base_layer().weight.square().mean().sqrt()  # 0.2 and what is not linear in it
