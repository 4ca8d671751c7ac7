"""y = x (W + delta)ᵀ + bias, keeping x, or what x is made from, and nothing of the weight's size.

forward     build W + delta, one product, let it go
backward    x again if need be; G = gᵀ x; W + delta again, with the factors' gradients; g (W + delta)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from snella.ops.rematerialize import Source, autocast_state, note_product
from snella.ops.update import Factors, Form, Stats, build, build_backward


class Convolution(NamedTuple):
    """What fixes a convolution besides its weight (out, in, kh, kw)."""

    kernel: tuple[int, int]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def _weight(self, weight: Tensor) -> Tensor:
        return weight.view(len(weight), -1, *self.kernel)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x (b, in, h, w), weight (out, in kh kw) -> (b, out, h', w')."""
        return F.conv2d(x, self._weight(weight), bias, self.stride, self.padding, self.dilation)

    def _backward(self, g: Tensor, x: Tensor, weight: Tensor, which: tuple[bool, bool, bool]) -> tuple:
        return torch.ops.aten.convolution_backward(
            *(g, x, self._weight(weight), None, self.stride, self.padding, self.dilation), False, (0, 0), 1, which
        )

    def input_gradient(self, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient of x."""
        return self._backward(g, x, weight, (True, False, False))[0]

    def weight_gradient(self, g: Tensor, x: Tensor) -> Tensor:
        """Gradient of the weight, as (out, in kh kw)."""
        shape = g.new_empty(g.shape[1], x.shape[1] * self.kernel[0] * self.kernel[1])  # only its shape is read
        return self._backward(g, x, shape, (False, True, False))[1].flatten(1)


class Linear(NamedTuple):
    """The product of a linear layer, with the methods of `Convolution`."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., in), weight (out, in) -> (..., out)."""
        return F.linear(x, weight, bias)

    def input_gradient(self, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Gradient of x."""
        return g @ weight

    def weight_gradient(self, g: Tensor, x: Tensor) -> Tensor:
        """Gradient (out, in) of the weight."""
        return g.flatten(0, -2).mT @ x.flatten(0, -2)


@dataclass(frozen=True)
class Call:
    """What is no tensor in one call of the function."""

    form: Form
    product: Linear | Convolution
    dtype: torch.dtype  # of the product
    source: Source | None  # of x


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, x, weight, bias, kept, *factors):
        adapted, stats = build(weight, Factors(*factors), kept, call.form, call.dtype)
        x_cast = x.to(call.dtype)
        y = _apply(call, x_cast, adapted, bias)
        inputs = (x_cast,) if call.source is None else call.source.tensors
        ctx.call, ctx.input_count, ctx.x_dtype = call, len(inputs), x.dtype
        ctx.save_for_backward(*inputs, weight, *stats, *factors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        call, saved = ctx.call, ctx.saved_tensors
        inputs, (weight, t, lse, *factors) = saved[: ctx.input_count], saved[ctx.input_count :]
        _, needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        with torch.autocast(g.device.type, enabled=False):
            x = inputs[0] if call.source is None else call.source.recompute(*inputs).to(call.dtype)
            G = call.product.weight_gradient(g, x).contiguous()
            adapted, gradients = build_backward(
                G, weight, Factors(*factors), Stats(t, lse), call.form, call.dtype if needs_x else None
            )
            of_weight = G.view_as(weight).to(weight.dtype) if needs_weight else None
            del G
            of_x = None if adapted is None else call.product.input_gradient(g, x, adapted).to(ctx.x_dtype)
        of_bias = None
        if needs_bias:
            channels = 1 if isinstance(call.product, Convolution) else g.ndim - 1
            of_bias = g.sum([d for d in range(g.ndim) if d != channels])
        return None, of_x, of_weight, of_bias, None, *gradients


def _apply(call: Call, x: Tensor, adapted: Tensor, bias: Tensor | None) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return call.product.forward(x, adapted, None if bias is None else bias.to(call.dtype))


def adapted_product(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    factors: Factors,
    kept: Tensor,
    *,
    form: Form,
    product: Linear | Convolution,
    dtype: torch.dtype,
    source: Source | None = None,
    recompute_output: bool = False,
) -> Tensor:
    """y of the layer with weight + updates, or with the updates alone where weight is None; differentiable.

    Args:
        x: input as the product takes it; any floating dtype.
        weight: (out, ...), of out · n entries; frozen or not.
        bias: (out,) or None.
        factors, kept: as in `update.build`.
        dtype: of the product; the update itself is made in at least fp32.
        source: how x came about; its tensors are kept instead of x.
        recompute_output: let an activation that follows keep none of y, which is then made again for it.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = autocast_state(device)[1]
    call = Call(form, product, dtype, source)
    y = _Product.apply(call, x, weight, bias, kept, *factors)
    if recompute_output and y.requires_grad:
        inputs = (x,) if source is None else source.tensors
        note_product(y, Source(inputs, _output_again(call, weight, bias, kept, factors)))
    return y


def _output_again(
    call: Call, weight: Tensor | None, bias: Tensor | None, kept: Tensor, factors: Factors
) -> Callable[..., Tensor]:
    def again(*tensors: Tensor) -> Tensor:
        with torch.no_grad():
            x = tensors[0] if call.source is None else call.source.recompute(*tensors)
            adapted, _ = build(weight, factors, kept, call.form, call.dtype)
            return _apply(call, x.to(call.dtype), adapted, bias)

    return again
