"""The layer's product equals torch's own with the adapted weight, for linear layers and convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from snella.ops import (
    Convolution,
    DropPathCall,
    Factors,
    Linear,
    ProductCall,
    UpdateSpec,
    adapted_product,
    adapted_weight,
    blocks,
    delta_by_definition,
    native,
)
from snella.ops.drop_path import DropPath
from support.golden import relative_error

SPEC = UpdateSpec("mixk", "published", 0.5)
LINEAR = ProductCall(SPEC, Linear(), torch.float32)


def factors_for(splits: int, n: int, m: int, dtype: torch.dtype = torch.float32) -> Factors:
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(splits, 2, size, 8, generator=generator, dtype=dtype) for size in (n, m))
    scalars = (torch.full((splits,), value, dtype=dtype) for value in (1.0, 0.8, 0.1))
    return Factors(*(tensor.requires_grad_() for tensor in (A, B, *scalars)))


def gradients(y: Tensor, x: Tensor, factors: Factors, *others: Tensor) -> list[Tensor]:
    tensors = [tensor for tensor in (x, *factors, *others) if tensor is not None]
    return list(torch.autograd.grad(y.square().sum(), tensors))


@pytest.mark.parametrize("trained_weight", [False, True])
def test_a_linear_layer(trained_weight: bool) -> None:
    torch.manual_seed(0)
    x, bias = torch.randn(3, 5, 24, requires_grad=True), torch.randn(40, requires_grad=True)
    weight = torch.randn(40, 24, requires_grad=trained_weight)
    factors, kept = factors_for(2, 24, 20), torch.tensor([200, 300])
    others = (bias, weight) if trained_weight else (bias,)

    expected = F.linear(x, adapted_weight(weight, factors, kept, SPEC, torch.float32), bias)
    actual = adapted_product(x, weight, bias, factors, kept, LINEAR)

    torch.testing.assert_close(actual, expected)
    for mine, theirs in zip(
        gradients(actual, x, factors, *others), gradients(expected, x, factors, *others), strict=True
    ):
        assert relative_error(mine, theirs) < 1e-5


def test_a_single_image_and_a_weight_in_channels_last() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(6, 9, 8, requires_grad=True), torch.randn(12, 6, 3, 3).to(memory_format=torch.channels_last)
    factors, kept = factors_for(1, 54, 12), torch.tensor([300])
    adapted = adapted_weight(weight.flatten(1), factors, kept, SPEC, torch.float32).view(12, 6, 3, 3)
    expected = F.conv2d(x, adapted, None, 1, 1)
    product = Convolution((3, 3), (1, 1), (1, 1), (1, 1))
    actual = adapted_product(x, weight, None, factors, kept, ProductCall(SPEC, product, torch.float32))
    torch.testing.assert_close(actual, expected)
    for mine, theirs in zip(gradients(actual, x, factors), gradients(expected, x, factors), strict=True):
        assert relative_error(mine, theirs) < 1e-5


@pytest.mark.parametrize(("kernel", "stride", "padding"), [((1, 1), (1, 1), (0, 0)), ((3, 2), (2, 1), (1, 1))])
def test_a_convolution(kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 6, 9, 8, requires_grad=True), torch.randn(12, 6, *kernel)
    factors, kept = factors_for(1, 6 * kernel[0] * kernel[1], 12), torch.tensor([50])

    adapted = adapted_weight(weight.flatten(1), factors, kept, SPEC, torch.float32).view_as(weight)
    expected = F.conv2d(x, adapted, None, stride, padding)
    product = Convolution(kernel, stride, padding, (1, 1))
    actual = adapted_product(x, weight, None, factors, kept, ProductCall(SPEC, product, torch.float32))

    torch.testing.assert_close(actual, expected)
    for mine, theirs in zip(gradients(actual, x, factors), gradients(expected, x, factors), strict=True):
        assert relative_error(mine, theirs) < 1e-5


@pytest.mark.parametrize("with_weight", [True, False])
@pytest.mark.parametrize("convolution", [True, False])
@pytest.mark.parametrize("budgets", [[20, 15], [0, 15]])
def test_drop_path_is_the_update_divided_on_kept_samples_and_absent_on_others(
    with_weight: bool, convolution: bool, budgets: list[int]
) -> None:
    torch.manual_seed(0)
    product = Convolution((1, 1), (1, 1), (0, 0), (1, 1)) if convolution else Linear()
    x = torch.randn(4, 6, 3, 3, requires_grad=True) if convolution else torch.randn(4, 5, 6, requires_grad=True)
    weight = torch.randn(8, 6, 1, 1) if convolution else torch.randn(8, 6)
    bias = torch.randn(8, requires_grad=True)
    factors, kept = factors_for(2, 6, 4), torch.tensor(budgets)
    masks = torch.tensor([[True, False, True, True], [False, False, True, False]])
    indices = [[row.nonzero()[:, 0] for row in rows] for rows in (masks, ~masks)]
    drop = DropPath(0.75, tuple(indices[0]), tuple(indices[1]))

    def multiplied(w: Tensor, b: Tensor | None = None) -> Tensor:
        return F.conv2d(x, w.view(8, 6, 1, 1), b) if convolution else F.linear(x, w, b)

    update = multiplied(adapted_weight(None, factors, kept, SPEC, torch.float32))
    scale = (masks.float() / 0.75).T.repeat_interleave(4, dim=1)  # (b, out)
    scaled = update * (scale[:, :, None, None] if convolution else scale[:, None])
    base = multiplied(weight.flatten(1), bias) if with_weight else 0
    expected = base + scaled
    actual = adapted_product(
        *(x, weight if with_weight else None, bias if with_weight else None, factors, kept),
        DropPathCall(SPEC, product, torch.float32, drop),
    )

    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    others = (bias,) if with_weight else ()
    for mine, theirs in zip(
        gradients(actual, x, factors, *others), gradients(expected, x, factors, *others), strict=True
    ):
        assert relative_error(mine, theirs) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_products_of_a_full_precision_update(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 24, dtype=dtype, requires_grad=True), torch.randn(20, 24).to(dtype)
    factors, kept = factors_for(1, 24, 20), torch.tensor([200])
    wide = adapted_weight(weight.float(), factors, kept, SPEC, torch.float32)
    actual = adapted_product(x, weight, None, factors, kept, ProductCall(SPEC, Linear(), dtype))
    expected = F.linear(x, wide.to(dtype))
    assert actual.dtype == dtype
    assert torch.equal(actual, expected)
    for mine, theirs in zip(gradients(actual, x, factors), gradients(expected, x, factors), strict=True):
        assert mine.dtype == theirs.dtype
        assert relative_error(mine.float(), theirs.float()) < (2e-3 if dtype == torch.float16 else 2e-2)


@pytest.mark.parametrize("shape", [(24,), (1, 24), (0, 24), (2, 0, 24)])
def test_inputs_of_unusual_shapes(shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(20, 24)
    bias = torch.randn(20, requires_grad=True)
    factors, kept = factors_for(1, 24, 20), torch.tensor([200])
    actual = adapted_product(x, weight, bias, factors, kept, LINEAR)
    expected = F.linear(x, adapted_weight(weight, factors, kept, SPEC, torch.float32), bias)
    torch.testing.assert_close(actual, expected)
    for mine, theirs in zip(gradients(actual, x, factors, bias), gradients(expected, x, factors, bias), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_gradient_that_is_an_expanded_number() -> None:
    x, weight = torch.randn(3, 24, requires_grad=True), torch.randn(20, 24)
    factors, kept = factors_for(1, 24, 20), torch.tensor([200])
    y = adapted_product(x, weight, None, factors, kept, LINEAR)
    y.sum().backward()
    expected = adapted_weight(weight, factors, kept, SPEC, torch.float32).sum(0).expand(3, 24)
    torch.testing.assert_close(x.grad, expected.detach())


@pytest.mark.parametrize("trained_weight", [False, True])
@pytest.mark.parametrize("budgets", [[0, 300], [200, 0], [0, 0]])
def test_matrices_without_a_budget_cost_nothing(
    budgets: list[int], trained_weight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, bias = torch.randn(3, 5, 24, requires_grad=True), torch.randn(40, requires_grad=True)
    weight = torch.randn(40, 24, requires_grad=trained_weight)
    factors, kept = factors_for(2, 24, 20), torch.tensor(budgets)
    others = (bias, weight) if trained_weight else (bias,)
    expected = F.linear(x, weight + delta_by_definition(factors, kept, SPEC), bias)
    wanted = gradients(expected, x, factors, *others)

    products: list[int] = []
    multiply = Linear.grad_weight
    monkeypatch.setattr(Linear, "grad_weight", lambda self, g, x: products.append(g.shape[-1]) or multiply(self, g, x))
    backend = native if native.library() is not None else blocks
    made: list[int] = []
    for name in ("kernel_and_stats", "update_backward"):
        whole = getattr(backend, name)
        monkeypatch.setattr(backend, name, lambda *a, whole=whole, **k: made.append(1) or whole(*a, **k))
    actual = adapted_product(x, weight, bias, factors, kept, LINEAR)
    found = gradients(actual, x, factors, *others)

    torch.testing.assert_close(actual, expected)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    live = sum(count > 0 for count in budgets)
    assert len(made) == 2 * live
    assert sum(products) == (40 if trained_weight else 20 * live)
