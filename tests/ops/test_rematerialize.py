"""Inputs made again: the same gradients to the bit, less memory, and off where it could not be the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import peft
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from snella import SnellaConfig
from snella.ops import source_of
from snella.training.memory import Storages

LEVELS = (False, True, "mlp")


class Mlp(nn.Module):
    """x -> norm -> fc1 -> act -> drop -> fc2, behind a trained layer so that the norm's input has a gradient."""

    def __init__(self, norm: nn.Module | None = None, act: nn.Module | None = None, p: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 16)
        self.norm = norm or nn.LayerNorm(16)
        for parameter in self.norm.parameters():  # at its initial weights a norm of a norm is hardly another
            nn.init.normal_(parameter, 1.5)
        self.fc1 = nn.Linear(16, 64)
        self.act = act or nn.GELU()
        self.drop = nn.Sequential(nn.Dropout(p), nn.Identity())
        self.fc2 = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.fc2(self.drop(self.act(self.fc1(self.norm(x)))))


def tuned(model: nn.Module, level: bool | str, **settings: object) -> nn.Module:
    settings = {"target_modules": ["fc1", "fc2"], "modules_to_save": ["stem"], **settings}
    torch.manual_seed(1)
    return peft.get_peft_model(copy.deepcopy(model), SnellaConfig(r=8, rematerialize=level, **settings)).train()


def gradients(model: nn.Module, x: Tensor, run: Callable[[nn.Module, Tensor], Tensor] | None = None) -> list[Tensor]:
    torch.manual_seed(2)
    model.zero_grad()
    out = model(x) if run is None else run(model, x)
    out.square().mean().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def kept_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that the graph of a forward pass keeps: every saved tensor of every node, by storage."""
    storages: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen, queue = set(), [model(x).sum().grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        queue += [parent for parent, _ in node.next_functions]
        saved = list(getattr(node, "saved_tensors", ()))
        for name in dir(node):
            # `raw` tells without unpacking whether a tensor is there: hooks would make it again
            if name.startswith("_raw_saved_") and "hook" not in repr(raw := getattr(node, name)):
                tensors = raw if isinstance(raw, tuple) else (raw,)
                saved += [t.data for t in tensors if isinstance(getattr(t, "data", None), Tensor)]
        for tensor in saved:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in own:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def assert_bits_equal(model: nn.Module, x: Tensor, run: Callable | None = None, **settings: object) -> None:
    expected = gradients(tuned(model, False, **settings), x, run)
    assert len(expected) > 4
    for level in LEVELS[1:]:
        actual = gradients(tuned(model, level, **settings), x, run)
        assert len(actual) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True)), level


@pytest.mark.parametrize("act", [nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.ReLU(), nn.SiLU(inplace=True)])
@pytest.mark.parametrize("norm", [nn.LayerNorm(16), nn.RMSNorm(16), nn.Identity()])
def test_gradients_to_the_bit(norm: nn.Module, act: nn.Module) -> None:
    torch.manual_seed(0)
    assert_bits_equal(Mlp(norm, act), torch.randn(4, 6, 16))


@pytest.mark.parametrize(
    "name", ["test_vit", "test_convnext", "swin_tiny_patch4_window7_224", "test_efficientnet", "test_resnet"]
)
def test_models_to_the_bit(name: str) -> None:
    torch.manual_seed(0)
    options = {"depths": (1, 1), "embed_dim": 32, "num_heads": (1, 2), "img_size": 56} if "swin" in name else {}
    model = timm.create_model(name, num_classes=3, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    x = torch.randn(2, 3, 56 if "swin" in name else 64, 56 if "swin" in name else 64)
    if name == "test_vit":
        model.set_input_size(64)
    assert_bits_equal(model, x, target_modules=None, modules_to_save=None)


def doubled(module: nn.Module, x: Tensor) -> Tensor:
    return type(module).forward(module, x) * 2


def sources(model: nn.Module, x: Tensor) -> dict[str, bool]:
    """Whether each adapted layer's input comes with a note."""
    seen = {}
    hooks = [
        module.register_forward_pre_hook(lambda m, args: seen.update({m.name: source_of(args[0]) is not None}))
        for module in model.modules()
        if type(module).__name__ == "SnellaLayer"
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return seen


X = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))


def test_both_inputs_are_known() -> None:
    assert sources(tuned(Mlp(), True), X) == {"fc1": True, "fc2": True}
    assert sources(tuned(Mlp(), False), X) == {"fc1": False, "fc2": False}


def test_memory_falls_with_each_level() -> None:
    unit = 4 * X.numel()  # the width 16; the MLP is four times as wide
    kept = [kept_bytes(tuned(Mlp(), level), X) for level in LEVELS]
    assert kept[0] - kept[1] >= 0.99 * (1 + 4) * unit  # outputs of the norm and of GELU
    assert kept[1] - kept[2] >= 0.99 * 4 * unit  # GELU's input


def test_off_where_an_activation_works_in_place() -> None:
    assert sources(tuned(Mlp(act=nn.SiLU(inplace=True)), True), X)["fc2"] is False


def test_off_where_dropout_changes_the_tensor() -> None:
    assert sources(tuned(Mlp(p=0.5), True), X) == {"fc1": True, "fc2": False}
    assert_bits_equal(Mlp(p=0.5), X)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "replaced"])
def test_off_where_others_change_what_the_module_does(kind: str) -> None:
    model = Mlp()
    for module in (model.norm, model.act):
        if kind == "forward":
            module.register_forward_hook(lambda m, args, out: out.mul_(2))
        elif kind == "forward_pre":
            module.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
        else:
            module.forward = partial(doubled, module)
    if kind != "replaced":  # deepcopy would keep the closure's module
        assert_bits_equal(model, X)
    assert sources(tuned(model, True), X) == {"fc1": False, "fc2": False}


def test_off_where_the_output_was_changed_in_place() -> None:
    class Changed(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            h = self.norm(x)
            h += 1
            return self.fc2(self.act(self.fc1(h)))

    assert sources(tuned(Changed(), True), X) == {"fc1": False, "fc2": True}
    assert_bits_equal(Changed(), X)


def test_a_module_shared_between_places() -> None:
    class Shared(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for _ in range(2):
                x = x + self.fc2(self.act(self.fc1(self.norm(x))))
            return x

    assert_bits_equal(Shared(), X)


class Gated(Mlp):
    """x -> norm -> fc1 -> a · act(b) -> fc2, the activation a function or a module, on either side."""

    def __init__(self, act: Callable[[Tensor], Tensor], gate_first: bool = False) -> None:
        super().__init__()
        del self.act
        self.act = act  # type: ignore[assignment]
        self.fc2 = nn.Linear(32, 16)
        self.gate_first = gate_first

    def product(self, x: Tensor) -> Tensor:
        a, b = self.fc1(self.norm(x)).chunk(2, dim=-1)
        return self.act(b) * a if self.gate_first else a * self.act(b)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.fc2(self.drop(self.product(x)))


ACTS = [F.gelu, partial(F.gelu, approximate="tanh"), F.silu, nn.GELU(), nn.SiLU()]


@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize("act", ACTS)
def test_gated_units(act: Callable[[Tensor], Tensor], gate_first: bool) -> None:
    model, unit = Gated(act, gate_first), 4 * X.numel()
    assert sources(tuned(model, True), X) == {"fc1": True, "fc2": True}
    assert_bits_equal(model, X)
    without, with_inputs = (kept_bytes(tuned(model, level), X) for level in LEVELS[:2])
    assert without - with_inputs >= 0.99 * (1 + 2 + 2) * unit  # outputs of the norm, the product and the activation


def test_gated_units_under_autocast() -> None:
    def run(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    assert_bits_equal(Gated(F.gelu), X, run)


def test_a_gated_input_of_several_layers() -> None:
    class Twice(Gated):
        def forward(self, x: Tensor) -> Tensor:
            x = self.product(self.stem(x))
            return self.fc2(x) + self.fc3(x)

        def __init__(self) -> None:
            super().__init__(F.gelu)
            self.fc3 = nn.Linear(32, 16)

    settings = {"target_modules": ["fc1", "fc2", "fc3"]}
    assert sources(tuned(Twice(), True, **settings), X) == {"fc1": True, "fc2": True, "fc3": True}
    assert_bits_equal(Twice(), X, **settings)


@pytest.mark.parametrize("kind", ["scalar", "broadcast", "changed", "activation changed", "hooked", "checkpointed"])
def test_off_for_other_products(kind: str) -> None:
    class Other(Gated):
        def product(self, x: Tensor) -> Tensor:
            a, b = self.fc1(self.norm(x)).chunk(2, dim=-1)
            if kind == "scalar":
                return F.gelu(b) * 2
            if kind == "broadcast":
                return a[..., :1] * F.gelu(b)
            if kind == "changed":
                h = a * F.gelu(b)
                with torch.no_grad():
                    h += 1
                return h
            if kind == "activation changed":
                gate = F.gelu(b)
                with torch.no_grad():
                    gate += 1
                return a * gate
            if kind == "hooked":
                with torch.autograd.graph.save_on_cpu():
                    return a * F.gelu(b)
            return checkpoint(lambda a, b: a * F.gelu(b), a, b, use_reentrant=False)

    assert sources(tuned(Other(F.gelu), True), X)["fc2"] is False
    assert_bits_equal(Other(F.gelu), X)


def test_gated_units_of_diffusers() -> None:
    attention = pytest.importorskip("diffusers.models.attention")
    for kind in ("geglu", "swiglu"):
        model = nn.Sequential()
        model.add_module("stem", nn.Linear(16, 16))
        model.add_module("ff", attention.FeedForward(16, activation_fn=kind))
        settings = {"target_modules": ["net.0.proj", "net.2"]}
        assert sources(tuned(model, True, **settings), X) == {"ff.net.0.proj": False, "ff.net.2": True}
        assert_bits_equal(model, X, **settings)


def test_gated_units_of_timm() -> None:
    from timm.layers import GluMlp, SwiGLU

    for mlp in (GluMlp(16, 64, act_layer=nn.SiLU), SwiGLU(16, 32)):
        model = nn.Sequential(nn.Linear(16, 16), mlp)
        names = [name for name, part in mlp.named_modules() if isinstance(part, nn.Linear)]
        settings = {"target_modules": names, "modules_to_save": ["0"]}
        assert sources(tuned(model, True, **settings), X)["1.fc2"]
        assert_bits_equal(model, X, **settings)


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
def test_deepcopy(level: bool | str) -> None:
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
        model.base_model.set_adapter(["default", "other"])
        results.append([*one, *gradients(model, x), x.grad])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


class Quick(nn.Module):
    """An activation of several operations, of which the last does not keep the input."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(x))


Quick.__name__, Quick.__module__ = "NewGELUActivation", "transformers.activations"


class NoisyGELU(nn.GELU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.rand_like(x)


def test_activations_of_several_operations() -> None:
    assert_bits_equal(Mlp(act=Quick()), X)


def test_a_norm_right_behind_an_adapted_layer() -> None:
    class Behind(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.act(self.norm(self.fc1(self.stem(x)))))

    for norm in (nn.LayerNorm(64), nn.RMSNorm(64)):
        assert_bits_equal(Behind(norm), X, modules_to_save=["stem", "norm"])


def test_off_for_classes_of_others() -> None:
    assert sources(tuned(Mlp(act=NoisyGELU()), True), X) == {"fc1": True, "fc2": False}
    assert_bits_equal(Mlp(act=NoisyGELU()), X)


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
        model.base_model.model.norm.weight.mul_(2)
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
def test_nothing_stays_behind_the_backward_pass(level: bool | str) -> None:
    model = tuned(Mlp(), level)
    with Storages() as storages:
        loss = model(X).square().mean()
        loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert storages.alive((X, loss, *gradients, *model.parameters(), *model.buffers())) == 0


def test_activations_can_still_be_saved(tmp_path: Path) -> None:
    kept = []
    model = tuned(Mlp(), "mlp")
    model.base_model.model.fc2.register_forward_pre_hook(lambda m, args: kept.append(args[0]))
    model(X)
    torch.save(kept[0].detach(), tmp_path / "x.pt")
    assert torch.equal(torch.load(tmp_path / "x.pt", weights_only=True), kept[0])


def test_unload_leaves_no_hooks() -> None:
    model = tuned(Mlp(), True)
    assert any(module._forward_hooks for module in model.modules())
    bare = model.merge_and_unload()
    assert not any(module._forward_hooks for module in bare.modules())


def test_under_compile() -> None:
    torch._dynamo.reset()
    model = tuned(Mlp(), "mlp")
    expected = gradients(model, X)
    actual = gradients(model, X, lambda m, x: torch.compile(m, backend="aot_eager")(x))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
