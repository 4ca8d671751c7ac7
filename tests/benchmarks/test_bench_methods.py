"""Every method tunes the same layers, and checkpointing changes no gradient."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from benchmarks.methods import METHODS
from benchmarks.published import PublishedLinear
from benchmarks.timing import make_contender, train_step

CPU = torch.device("cpu")


def tuned_layers(model: nn.Module) -> set[str]:
    """Return the names of the wrapped layers, as the unwrapped model has them."""
    return {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer | PublishedLinear)
    }


@pytest.mark.parametrize("architecture", ["test_vit", "test_convnext"])
def test_the_same_layers_and_the_head(architecture: str) -> None:
    base = timm.create_model(architecture, num_classes=5)
    layers = {}
    for name, method in METHODS.items():
        model = method.wrap(copy.deepcopy(base), 4)
        trainable = {p.removeprefix("base_model.model.") for p, t in model.named_parameters() if t.requires_grad}
        assert any("head" in parameter for parameter in trainable), name
        if name == "full":
            assert len(trainable) == len(list(base.parameters()))
            continue
        layers[name] = tuned_layers(model)
        outside = {p for p in trainable if "head" not in p and not p.startswith(tuple(layers[name]))}
        assert not outside, name
    assert len({frozenset(names) for names in layers.values()}) == 1
    kinds = {name.rsplit(".", 1)[-1] for name in layers["lora"]}
    assert kinds == ({"qkv", "proj", "fc1", "fc2"} if architecture == "test_vit" else {"fc1", "fc2"})


def test_snella_at_every_level() -> None:
    assert {"snella-off", "snella", "snella-mlp", "snella-mlp-gc", "snella-gc"} <= METHODS.keys()


@pytest.mark.parametrize("name", [name for name in METHODS if name.endswith(("-gc", "-mlp")) or name == "snella"])
def test_recomputing_changes_no_gradient(name: str, base: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    plain = "snella-off" if name.startswith("snella") else name.removesuffix("-gc")
    gradients = []
    for method in (plain, name):
        torch.manual_seed(0)
        contender = make_contender(method, base, r=4, device=CPU, dtype=torch.float32)
        contender.loss(*batch).backward()
        gradients.append({n: p.grad for n, p in contender.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], gradient, msg=lambda text, p=parameter: f"{p}: {text}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_trains(name: str, dtype: torch.dtype, base: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    contender = make_contender(name, base, r=4, device=CPU, dtype=dtype)
    before = {n: p.detach().clone() for n, p in contender.model.named_parameters()}
    times = [train_step(contender, batch[0].to(dtype), batch[1]) for _ in range(2)]

    assert all(0 < time.forward_backward < time.step for time in times)
    for n, p in contender.model.named_parameters():
        assert p.dtype == dtype
        assert p.grad is None
        if not p.requires_grad:
            assert torch.equal(p, before[n]), n
    moved = [n for n, p in contender.model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) > 12
