"""y = x (W + delta)ᵀ + bias, keeping x, or what x is made from, and nothing of the weight's size.

    forward     build W + delta, one product, let it go
    backward    x again if need be; G = gᵀ x; W + delta again, with the factors' gradients; g (W + delta)

The product is that of a linear layer or of a convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from snella.ops.drop_path import DropPath
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
        return g.reshape(-1, g.shape[-1]).mT @ x.reshape(-1, x.shape[-1])


@dataclass(frozen=True)
class Call:
    """What is no tensor in one call of the function."""

    form: Form
    product: Linear | Convolution
    dtype: torch.dtype  # of the product
    recompute: Callable[..., Tensor] | None  # x, of tensors kept instead of it
    drop: DropPath | None = None

    @property
    def channels(self) -> int:
        """The axis of y that the out axis of the weight becomes."""
        return 1 if isinstance(self.product, Convolution) else -1

    def apply(self, x: Tensor, adapted: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """y of x in this call's dtype."""
        bias = None if bias is None else bias.to(self.dtype)
        if self.drop is None:
            return self.product.forward(x, adapted, bias)
        splits = len(self.drop.kept)
        biases = [None] * splits if bias is None else bias.chunk(splits)
        parts = []
        for (with_update, base, kept, dropped), b in zip(self._matrices(adapted, weight), biases, strict=True):
            of_kept = self.product.forward(x[kept], with_update, b)
            part = of_kept.new_zeros(len(x), *of_kept.shape[1:])
            part[kept] = of_kept
            if base is not None:
                part[dropped] = self.product.forward(x[dropped], base, b)
            parts.append(part)
        return torch.cat(parts, dim=self.channels)

    def _matrices(
        self, adapted: Tensor, weight: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor | None, Tensor, Tensor]]:
        """Of each of the S matrices: with update and without, and the samples that see the one and the other."""
        assert self.drop is not None
        splits = len(self.drop.kept)
        frozen = [None] * splits if weight is None else weight.detach().to(self.dtype).flatten(1).chunk(splits)
        return zip(adapted.chunk(splits), frozen, self.drop.kept, self.drop.dropped, strict=True)

    def weight_gradient(self, g: Tensor, x: Tensor) -> Tensor:
        """Gradient (out, n) of the adapted weight, as `built` makes it."""
        if self.drop is None:
            return self.product.weight_gradient(g, x)
        parts = g.chunk(len(self.drop.kept), dim=self.channels)
        return torch.cat(
            [
                self.product.weight_gradient(part[kept], x[kept])
                for part, kept in zip(parts, self.drop.kept, strict=True)
            ]
        )

    def input_gradient(self, g: Tensor, x: Tensor, adapted: Tensor, weight: Tensor | None) -> Tensor:
        """Gradient of x."""
        if self.drop is None:
            return self.product.input_gradient(g, x, adapted)
        parts = g.chunk(len(self.drop.kept), dim=self.channels)
        of_x = torch.zeros_like(x)
        for (with_update, base, kept, dropped), part in zip(self._matrices(adapted, weight), parts, strict=True):
            of_x.index_add_(0, kept, self.product.input_gradient(part[kept], x[kept], with_update))
            if base is not None:
                of_x.index_add_(0, dropped, self.product.input_gradient(part[dropped], x[dropped], base))
        return of_x

    def built(self, weight: Tensor | None, factors: Factors, kept: Tensor) -> tuple[Tensor, Stats]:
        """The adapted weight (out, n) that kept samples see, and its statistics."""
        if self.drop is None:
            return build(weight, factors, kept, self.form, self.dtype)
        update, stats = build(None, factors, kept, self.form, torch.promote_types(factors.A.dtype, torch.float32))
        return self._joined(update.div_(self.drop.keep), weight), stats

    def built_backward(
        self, G: Tensor, weight: Tensor | None, factors: Factors, stats: Stats, needed: bool
    ) -> tuple[Tensor | None, Factors]:
        """The adapted weight again, if it is needed, and the gradients of the factors."""
        if self.drop is None:
            return build_backward(G, weight, factors, stats, self.form, self.dtype if needed else None)
        dtype = torch.promote_types(factors.A.dtype, torch.float32)
        G = G.to(dtype).div_(self.drop.keep)
        update, gradients = build_backward(G, None, factors, stats, self.form, dtype if needed else None)
        return None if update is None else self._joined(update.div_(self.drop.keep), weight), gradients

    def _joined(self, update: Tensor, weight: Tensor | None) -> Tensor:
        if weight is not None:
            update.add_(weight.detach().flatten(1))
        return update.to(self.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, x, weight, bias, kept, A, B, alpha, gamma, beta, *sources):
        factors = Factors(A, B, alpha, gamma, beta)
        with torch.autocast(x.device.type, enabled=False):
            adapted, stats = call.built(weight, factors, kept)
            x_cast = x.to(call.dtype)
            y = call.apply(x_cast, adapted, weight, bias)
        ctx.call, ctx.x_dtype = call, x.dtype
        # Tensors go nowhere but here: what is saved goes with the backward pass, what is on ctx with the last output.
        ctx.save_for_backward(weight, *stats, *factors, *(sources or (x_cast,)))
        return y.data  # not a view, which F.linear's result is: activations may work on it in place

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        call = ctx.call
        weight, t, lse, A, B, alpha, gamma, beta, *inputs = ctx.saved_tensors
        _, needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        with torch.autocast(g.device.type, enabled=False):
            x = inputs[0] if call.recompute is None else call.recompute(*inputs).to(call.dtype)
            of_weight = of_bias = of_x = None
            if needs_bias:
                channels = call.channels % g.ndim
                of_bias = g.sum([d for d in range(g.ndim) if d != channels])
            G = call.weight_gradient(g, x).contiguous()
            if needs_weight:
                of_weight = G if call.drop is None else call.product.weight_gradient(g, x)
                of_weight = of_weight.view_as(weight).to(weight.dtype)
            factors = Factors(A, B, alpha, gamma, beta)
            adapted, gradients = call.built_backward(G, weight, factors, Stats(t, lse), needs_x)
            del G
            if adapted is not None:
                of_x = call.input_gradient(g, x, adapted, weight).to(ctx.x_dtype)
        unneeded = (None,) * (0 if call.recompute is None else len(inputs))
        return None, of_x, of_weight, of_bias, None, *gradients, *unneeded


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
    drop: DropPath | None = None,
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
        drop: samples that do without the update.
        recompute_output: let an activation that follows keep none of y, which is then made again for it.
    """
    if x.ndim == (3 if isinstance(product, Convolution) else 1):  # a single sample
        options = dict(form=form, product=product, dtype=dtype, drop=drop)
        return adapted_product(x[None], weight, bias, factors, kept, **options)[0]  # type: ignore[arg-type]
    _, autocast_dtype, enabled = autocast_state(x.device.type)
    if enabled and x.dtype != torch.float64:
        dtype = autocast_dtype
    call = Call(form, product, dtype, None if source is None else source.recompute, drop)
    # detached: they share storage and version with the originals, but bring no edges into the graph
    sources = () if source is None else tuple(tensor.detach() for tensor in source.tensors)
    y = _Product.apply(call, x, weight, bias, kept, *factors, *sources)
    if recompute_output and y.requires_grad:
        inputs = (x,) if source is None else source.tensors
        rest = (weight, bias, kept, *factors)
        again = partial(_output_again, call, len(inputs), tuple(tensor is not None for tensor in rest))
        note_product(y, Source((*inputs, *(tensor for tensor in rest if tensor is not None)), again))
    return y


def _output_again(call: Call, inputs: int, present: tuple[bool, ...], *tensors: Tensor) -> Tensor:
    """y of the inputs, and of those of weight, bias, kept and factors that are present."""
    rest = iter(tensors[inputs:])
    weight, bias, kept, *factors = (next(rest) if there else None for there in present)
    assert kept is not None
    with torch.no_grad(), torch.autocast(kept.device.type, enabled=False):
        x = tensors[0] if call.recompute is None else call.recompute(*tensors[:inputs])
        adapted, _ = call.built(weight, Factors(*factors), kept)  # type: ignore[arg-type]
        return call.apply(x.to(call.dtype), adapted, weight, bias)
