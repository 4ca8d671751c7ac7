"""What surrounds a layer and could make its update stale, doubled or lost: optimisers, averages, hooks, transforms."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import accelerate
import peft
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from snella import SnellaConfig
from snella.errors import UserError
from support.tuned import TRAINED, adapter_parameters, grad_of, layers, tuned, tuner_of
from support.vits import tiny_vit


@torch.no_grad()
def afresh(model: nn.Module, images: Tensor) -> Tensor:
    """The output of a model that has kept nothing."""
    return copy.deepcopy(model).train().eval()(images)


@pytest.mark.parametrize("optimiser", [torch.optim.AdamW, torch.optim.SGD])
def test_evaluation_sees_the_steps_of_fused_optimisers(optimiser: Any, vit: nn.Module, images: Tensor) -> None:
    model = tuned(vit).eval()
    steps = optimiser(adapter_parameters(model).values(), lr=0.01, fused=True)
    for _ in range(2):
        model(images).square().sum().backward()
        with torch.no_grad():
            before = model(images)
        steps.step()
        with torch.no_grad():
            after = model(images)
        assert not torch.equal(before, after)
        assert torch.equal(after, afresh(model, images))


def test_evaluation_sees_weights_that_are_written_past_autograd(vit: nn.Module, images: Tensor) -> None:
    model = tuned(vit).eval()
    with torch.no_grad():
        before = model(images)
        for parameter in adapter_parameters(model).values():
            parameter.data.mul_(0.5)
        after = model(images)
    assert not torch.equal(before, after)
    assert torch.equal(after, afresh(model, images))


def test_evaluation_sees_what_trains_after_a_first_look(vit: nn.Module, images: Tensor) -> None:
    model = tuned(vit).eval().requires_grad_(False)
    with torch.no_grad():
        before = model(images)
    parameters = adapter_parameters(model)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    model(images).square().sum().backward()
    torch.optim.SGD(parameters.values(), lr=0.01, fused=True).step()
    with torch.no_grad():
        assert not torch.equal(model(images), before)
        assert torch.equal(model(images), afresh(model, images))


def test_constants_copied_into_the_buffers_are_used(images: Tensor) -> None:
    """As by DDP, which gives all processes the first one's."""
    first, large = tiny_vit(), tiny_vit()
    with torch.no_grad():
        for parameter in large.parameters():
            parameter.mul_(3)
    model, other = tuned(first), tuned(large)
    for target, source in zip(other.state_dict().values(), model.state_dict().values(), strict=True):
        target.copy_(source)
    for one in (model, other):
        one.eval()
    with torch.no_grad():
        assert torch.equal(model(images), other(images))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_layers_that_share_a_weight_merge_and_unmerge_in_any_order(order: tuple[int, int]) -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(6, 6), nn.Linear(6, 6)
    last.weight = first.weight
    base = nn.Sequential(first, nn.GELU(), last)
    model = tuned(base, target_modules=["0", "2"])
    two, x = layers(model), torch.randn(3, 6)
    weight = two[0].get_base_layer().weight
    before, expected = weight.detach().clone(), model(x)
    for layer in two:
        layer.merge()
    torch.testing.assert_close(model(x), expected)
    clone: Any = copy.deepcopy(model)
    for tuner in (model, clone):
        for layer in layers(tuner):
            layer.scale_layer(0.5)  # not what is merged already
        for i in order:
            layers(tuner)[i].unmerge()
        first, second = (layer.get_base_layer().weight for layer in layers(tuner))
        assert first is second
        assert torch.equal(first, before)
        for layer in layers(tuner):
            layer.unscale_layer()
        torch.testing.assert_close(tuner(x), expected)
    assert two[0].get_base_layer().weight is weight
    torch.testing.assert_close(model.merge_and_unload()(x), expected)


def test_an_adapter_for_each_row_is_refused(vit: nn.Module, images: Tensor) -> None:
    model = tuned(vit)
    with pytest.raises(UserError, match="adapter_names"):
        model(images, adapter_names=["default"] * 3)


def test_on_a_half_precision_base_only_the_active_adapter_trains(tmp_path: Path) -> None:
    model = tuned(tiny_vit().bfloat16())
    model.add_adapter("other", SnellaConfig(**TRAINED))
    trained = {name for name, p in adapter_parameters(model).items() if p.requires_grad}
    assert trained == {name for name in adapter_parameters(model) if name.endswith(".default")}
    assert all(p.dtype == torch.float32 for p in adapter_parameters(model).values())
    model.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(tiny_vit().bfloat16(), tmp_path)
    assert loaded.get_nb_trainable_parameters()[0] == 0
    again = peft.PeftModel.from_pretrained(tiny_vit().bfloat16(), tmp_path, is_trainable=True)
    assert all(p.requires_grad for p in adapter_parameters(again).values())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_hooks_of_the_base_layer_are_called(training: bool, gradients: bool, vit: nn.Module, images: Tensor) -> None:
    model = tuned(vit).train(training)
    layer = layers(model)[0]
    seen: list[object] = []
    with torch.set_grad_enabled(gradients):
        expected = model(images)
        hook = layer.get_base_layer().register_forward_hook(lambda module, args, output: seen.append(output))
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
        hook.remove()
        layer.get_base_layer().register_forward_pre_hook(lambda module, args: (2 * args[0],))
        assert not torch.allclose(model(images), expected, rtol=1e-4, atol=1e-5)
    assert len(seen) == 1


@pytest.mark.parametrize("rematerialize", [True, False, "mlp"])
def test_a_hooked_layer_has_the_same_gradients(rematerialize: Any, images: Tensor) -> None:
    plain, hooked = (tuned(tiny_vit(), rematerialize=rematerialize).train() for _ in range(2))
    hooked.load_state_dict(plain.state_dict())
    seen: list[object] = []
    for layer in layers(hooked):
        layer.get_base_layer().register_full_backward_hook(lambda *found: seen.append(found))
    for model in (plain, hooked):
        model(images.clone().requires_grad_()).square().sum().backward()
    assert len(seen) == len(layers(hooked))
    for name, parameter in adapter_parameters(plain).items():
        torch.testing.assert_close(grad_of(adapter_parameters(hooked)[name]), grad_of(parameter), rtol=1e-3, atol=1e-4)


def test_evaluation_sees_a_base_that_trains(vit: nn.Module, images: Tensor) -> None:
    model = tuned(vit).eval()
    weight = layers(model)[0].get_base_layer().weight.requires_grad_(True)
    model(images).square().sum().backward()
    with torch.no_grad():
        before = model(images)
    torch.optim.SGD([weight], lr=0.1, fused=True).step()
    with torch.no_grad():
        assert not torch.equal(model(images), before)
        assert torch.equal(model(images), afresh(model, images))


def test_offloaded_weights(vit: nn.Module, images: Tensor) -> None:
    """Of the base they are fetched by hooks; factors have none."""
    model = tuned(vit).eval()
    with torch.no_grad():
        expected = model(images)
        for layer in layers(model):
            accelerate.cpu_offload(layer.get_base_layer(), execution_device=torch.device("cpu"))
            assert layer.get_base_layer().weight.is_meta
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    whole = accelerate.cpu_offload(tuned(tiny_vit()), execution_device=torch.device("cpu"))
    with pytest.raises(UserError, match="offloaded"):
        whole(images)


def test_transforms_of_functions(vit: nn.Module, images: Tensor) -> None:
    model = tuned(vit).eval()
    parameters = dict(model.named_parameters())
    factors = adapter_parameters(model)

    def loss(changed: dict[str, Tensor]) -> Tensor:
        return functional_call(model, {**parameters, **changed}, (images,)).square().sum()

    model(images).square().sum().backward()
    for name, found in grad(loss)({name: p.detach() for name, p in factors.items()}).items():
        torch.testing.assert_close(found, grad_of(factors[name]), rtol=1e-3, atol=1e-4)
    stacked = {name: torch.stack([p.detach(), 2 * p.detach()]) for name, p in factors.items()}
    with torch.no_grad():
        first, second = vmap(loss)(stacked)
        torch.testing.assert_close(first, loss({}), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(second, loss({name: 2 * p for name, p in factors.items()}), rtol=1e-4, atol=1e-4)


def test_traces(vit: nn.Module, images: Tensor) -> None:
    model = tuned(vit).eval()
    traced: Any = torch.jit.trace(tuner_of(model).model, images, check_trace=False)
    with torch.no_grad():
        torch.testing.assert_close(traced(2 * images), model(2 * images), rtol=1e-4, atol=1e-5)


def test_a_config_can_serve_two_models() -> None:
    """The heads that one model has are not those of the other."""
    config = SnellaConfig(r=4)
    peft.get_peft_model(tiny_vit(), config)
    with torch.device("meta"):
        other = timm.create_model("deit_tiny_distilled_patch16_224")
    model = peft.get_peft_model(other, config)
    heads = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad and "snella_" not in name}
    assert heads == {"head", "head_dist"}
    config = SnellaConfig(r=2, target_modules="all-linear", modules_to_save=[])
    for depth in (2, 5):
        model = peft.get_peft_model(nn.Sequential(*(nn.Linear(4, 4) for _ in range(depth))), config)
        assert len(layers(model)) == depth
    config.target_modules = ["1"]
    model = peft.get_peft_model(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), config)
    assert tuner_of(model).targeted_module_names == ["1"]


def test_layers_say_their_sizes_as_those_of_peft_do(vit: nn.Module, images: Tensor) -> None:
    layer: Any = layers(tuned(vit))[0]
    base = layer.get_base_layer()
    assert (layer.in_features, layer.out_features) == (base.in_features, base.out_features)
    with peft.helpers.disable_input_dtype_casting(layer):
        assert F.linear(torch.ones(1, base.in_features), base.weight).shape == layer(torch.ones(1, 24)).shape
    convolution: Any = layers(tuned(nn.Sequential(nn.Conv2d(3, 8, 2)), target_modules=["0"]))[0]
    assert (convolution.in_features, convolution.out_features) == (3, 8)
