"""What surrounds inputs that are made again: checkpoints, hooks, autocast, copies, several adapters, compilation."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from snella import SnellaConfig
from snella.training.memory import Storages
from support.mlps import LEVELS, Level, Mlp, X, assert_bits_equal, gradients, sources, tuned
from support.tuned import layer_named, tuner_of


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_gradient_checkpointing(reentrant: bool) -> None:
    def run(model: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(model, x.clone().requires_grad_(), use_reentrant=reentrant)

    assert_bits_equal(Mlp(), X, run)
    plain = gradients(tuned(Mlp(), False), X)
    assert len(gradients(tuned(Mlp(), "mlp"), X, run)) == len(plain)


def test_under_autocast() -> None:
    def run(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    assert_bits_equal(Mlp(), X, run)


def test_under_saved_tensor_hooks() -> None:
    def run(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
            return model(x)

    assert_bits_equal(Mlp(), X, run)


def test_a_second_backward_pass_through_the_same_graph() -> None:
    base, results = Mlp(), []
    for level in LEVELS:
        model = tuned(base, level)
        loss = model(X).square().mean()
        loss.backward(retain_graph=True)
        loss.backward()
        results.append([p.grad for p in model.parameters() if p.grad is not None])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("level", [True, "mlp"])
def test_deepcopy(level: Level) -> None:
    model = tuned(Mlp(), level)
    copied = copy.deepcopy(model)
    assert sources(copied, X) == {"fc1": True, "fc2": True}
    for a, b in zip(gradients(model, X), gradients(copied, X), strict=True):
        assert torch.equal(a, b)


def test_several_adapters() -> None:
    base, results = Mlp(), []
    for level in LEVELS:
        model = tuned(base, level, modules_to_save=[])
        torch.manual_seed(3)
        model.add_adapter(
            "other", SnellaConfig(r=4, target_modules=["fc1", "fc2"], modules_to_save=[], rematerialize=level)
        )
        x = X.clone().requires_grad_()
        model.set_adapter("other")
        one = gradients(model, x)
        tuner_of(model).set_adapter(["default", "other"])
        results.append([*one, *gradients(model, x), x.grad])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_off_under_global_hooks() -> None:
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: out * 2 if isinstance(module, nn.LayerNorm | nn.GELU) else None
    )
    try:
        assert_bits_equal(Mlp(), X)
    finally:
        handle.remove()


def test_parameters_given_from_outside() -> None:
    def run(model: nn.Module, x: Tensor) -> Tensor:
        norms = {name: 1.5 * p.detach() for name, p in model.named_parameters() if "norm" in name}
        return torch.func.functional_call(model, norms, (x,))

    assert_bits_equal(Mlp(), X, run)


def test_a_norm_changed_between_the_passes_is_told() -> None:
    model = tuned(Mlp(), True)
    loss = model(X).square().mean()
    with torch.no_grad():
        model.get_parameter("base_model.model.norm.weight").mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("outer", ["checkpoint", "save_on_cpu"])
def test_a_checkpoint_inside_others(outer: str) -> None:
    class Nested(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            def inside(h: Tensor) -> Tensor:
                return h + checkpoint(self.fc2, self.act(self.fc1(self.norm(h))), use_reentrant=False)

            if outer == "checkpoint":
                return checkpoint(inside, self.stem(x), use_reentrant=False)
            with torch.autograd.graph.save_on_cpu():
                return inside(self.stem(x))

    assert_bits_equal(Nested(), X)


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_stays_behind_the_backward_pass(level: Level) -> None:
    model = tuned(Mlp(), level)
    with Storages() as storages:
        loss = model(X).square().mean()
        loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert storages.alive((X, loss, *gradients, *model.parameters(), *model.buffers())) == 0


def test_activations_can_still_be_saved(tmp_path: Path) -> None:
    kept: list[Tensor] = []
    model = tuned(Mlp(), "mlp")
    layer_named(model, "fc2").register_forward_pre_hook(lambda m, args: kept.append(args[0]))
    model(X)
    torch.save(kept[0].detach(), tmp_path / "x.pt")
    assert torch.equal(torch.load(tmp_path / "x.pt", weights_only=True), kept[0])


def test_unload_leaves_no_hooks() -> None:
    model = tuned(Mlp(), True)
    assert any(module._forward_hooks for module in model.modules())
    bare = model.merge_and_unload()
    assert not any(module._forward_hooks for module in bare.modules())


@pytest.mark.slow
def test_under_compile() -> None:
    torch._dynamo.reset()
    model = tuned(Mlp(), "mlp")
    expected = gradients(model, X)
    actual = gradients(model, X, lambda m, x: torch.compile(m, backend="aot_eager")(x))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
