"""Inputs made again in gated units, where the product of two is an adapted layer's input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from support.mlps import LEVELS, Mlp, X, assert_bits_equal, kept_bytes, sources, tuned
from support.tuned import Settings


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

    settings: Settings = {"target_modules": ["fc1", "fc2", "fc3"]}
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
        settings: Settings = {"target_modules": ["net.0.proj", "net.2"]}
        assert sources(tuned(model, True, **settings), X) == {"ff.net.0.proj": False, "ff.net.2": True}
        assert_bits_equal(model, X, **settings)


def test_gated_units_of_timm() -> None:
    from timm.layers import GluMlp, SwiGLU

    for mlp in (GluMlp(16, 64, act_layer=nn.SiLU), SwiGLU(16, 32)):
        model = nn.Sequential(nn.Linear(16, 16), mlp)
        names = [name for name, part in mlp.named_modules() if isinstance(part, nn.Linear)]
        settings: Settings = {"target_modules": names, "modules_to_save": ["0"]}
        assert sources(tuned(model, True, **settings), X)["1.fc2"]
        assert_bits_equal(model, X, **settings)
