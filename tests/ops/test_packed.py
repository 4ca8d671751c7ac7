"""Weights kept in fewer bits: their values, their size, and products that keep nothing of the weight's full size."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from snella.ops import FORMATS, Factors, Linear, ProductCall, UpdateSpec, adapted_product, pack, unpacked
from snella.training.memory import Storages

BITS = {"bf16": 16, "int8": 8, "nf4": 4.5}
BELOW = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0)
ABOVE = (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)
LEVELS = torch.tensor((*BELOW, *ABOVE))  # appendix E of the QLoRA paper


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 100), st.floats(1e-6, 1e6))
def test_int8_is_the_nearest_of_255_steps_of_each_row(rows: int, columns: int, seed: int, size: float) -> None:
    weight = size * random(rows, columns, seed=seed)
    weight[0] = 0  # a row without a largest entry
    steps = weight.abs().amax(1, keepdim=True) / 127
    error = (unpacked(pack(weight, "int8")) - weight).abs()
    assert (error <= 0.501 * steps).all()


@given(st.integers(1, 9), st.integers(1, 200), st.integers(0, 100), st.floats(1e-6, 1e6))
def test_nf4_is_the_nearest_level_of_each_block(rows: int, columns: int, seed: int, size: float) -> None:
    weight = size * random(rows, columns, seed=seed)
    found = unpacked(pack(weight, "nf4"))
    assert found.shape == weight.shape
    for block, values in zip(weight.flatten().split(64), found.flatten().split(64), strict=True):
        levels = block.abs().max() * LEVELS
        nearest = (block[:, None] - levels).abs().min(dim=1).values
        torch.testing.assert_close((block - values).abs(), nearest, rtol=1e-4, atol=1e-5 * size)


def test_bf16_is_the_nearest_number_of_that_format() -> None:
    weight = random(5, 7)
    assert torch.equal(unpacked(pack(weight, "bf16")), weight.to(torch.bfloat16).float())


@pytest.mark.parametrize("form", FORMATS)
def test_size_in_memory(form: str) -> None:
    packed = pack(random(256, 1024), form)
    assert sum(part.nbytes for part in packed.parts) * 8 == pytest.approx(BITS[form] * packed.numel(), rel=0.01)


def layer(form: str, kind: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """Return a layer with a packed weight, the same with its values, and an input."""
    torch.manual_seed(0)
    packed: Any = nn.Linear(24, 16) if kind == "linear" else nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    packed.weight = nn.Parameter(pack(packed.weight, form), requires_grad=False)
    plain = copy.deepcopy(packed)
    plain.weight = nn.Parameter(unpacked(packed.weight), requires_grad=False)
    return packed, plain, random(3, 5, 24) if kind == "linear" else random(3, 4, 9, 9)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize("form", FORMATS)
def test_products_and_gradients_are_those_of_the_values(form: str, kind: str, autocast: bool) -> None:
    found = []
    packed, plain, x = layer(form, kind)
    for module in (packed, plain):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = module(leaf)
        y.float().square().sum().backward()
        assert leaf.grad is not None
        assert isinstance(module.bias, Tensor)
        assert module.bias.grad is not None
        found.append((y.detach(), leaf.grad, module.bias.grad))
    assert found[0][0].dtype == found[1][0].dtype
    if autocast:  # one rounds to bf16 once, the other twice
        torch.testing.assert_close(found[0], found[1], rtol=0.02, atol=0.05)
    else:
        assert torch.equal(found[0][0], found[1][0])
        torch.testing.assert_close(found[0][1:], found[1][1:])


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_of_the_weights_full_size_is_kept(form: str) -> None:
    linear = nn.Linear(256, 256, bias=False)
    linear.weight = nn.Parameter(pack(linear.weight, form), requires_grad=False)
    x = random(2, 256).requires_grad_()
    with Storages() as storages:
        y = linear(x)
    assert storages.alive((x, linear.weight)) <= y.nbytes + 4 * len(LEVELS)  # the table of nf4, once a process


@pytest.mark.parametrize("form", FORMATS)
def test_an_adapted_product_reads_it_in_both_passes(form: str) -> None:
    weight = random(12, 8)
    factors = Factors(random(1, 2, 8, 2), random(1, 2, 12, 2, seed=1), None, None, None)
    call = ProductCall(UpdateSpec(kernel="pwl", gate="hard", scale=0.1), Linear(), torch.float32)
    packed = pack(weight, form)
    found = []
    for W in (packed, unpacked(packed)):
        x, A, B = (t.clone().requires_grad_() for t in (random(3, 8), factors.A, factors.B))
        y = adapted_product(x, W, None, Factors(A, B, None, None, None), torch.tensor([40]), call)
        y.square().sum().backward()
        found.append((y.detach(), x.grad, A.grad, B.grad))
    assert all(map(torch.equal, *found))


def test_it_moves_and_copies_as_a_weight_does() -> None:
    linear = nn.Linear(8, 4)
    linear.weight = nn.Parameter(pack(linear.weight, "int8"), requires_grad=False)
    values = unpacked(linear.weight)
    for other in (copy.deepcopy(linear), copy.deepcopy(linear).double(), copy.deepcopy(linear).to("cpu")):
        assert type(other.weight) is type(linear.weight)
        assert torch.equal(unpacked(other.weight).float(), values)
    assert torch.equal(linear.weight + 1, values + 1)
    assert torch.equal(F.relu(linear.weight), values.relu())
    with pytest.raises(RuntimeError, match="kept as int8 cannot be written to; unpack it first"):
        linear.weight.data.add_(1)
