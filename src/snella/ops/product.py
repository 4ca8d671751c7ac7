"""y = x (W + delta)ᵀ + bias, keeping x, or what x is made from, and nothing of the weight's size.

    forward     build W + delta, one product, let it go
    backward    x again if need be; G = gᵀ x; W + delta again, with the factors' gradients; g (W + delta)

The product is that of a linear layer or of a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from snella.ops.packed import unpacked
from snella.ops.rematerialize import Source, autocast_state, note_product
from snella.ops.sampling import Sample, sampled_product
from snella.ops.update import Factors, Stats, UpdateSpec, build, build_backward

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}  # by the number of the kernel's axes


class Convolution(NamedTuple):
    """The settings of a convolution, without its weight (out, in / groups, *kernel)."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def _weight(self, weight: Tensor) -> Tensor:
        return weight.view(len(weight), -1, *self.kernel)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output (b, out, h', w') of x (b, in, h, w) and weight (out, in kh kw)."""
        convolve = _CONVOLVE[len(self.kernel)]
        return convolve(x, self._weight(weight), bias, self.stride, self.padding, self.dilation, self.groups)

    def _backward(self, g: Tensor, x: Tensor, weight: Tensor, which: tuple[bool, bool, bool]) -> tuple:
        return torch.ops.aten.convolution_backward(
            *(g, x, self._weight(weight), None, self.stride, self.padding, self.dilation),
            *(False, (0,) * len(self.kernel), self.groups, which),
        )

    def grad_input(self, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of x, given g, that of the output."""
        return self._backward(g, x, weight, (True, False, False))[0]

    def grad_weight(self, g: Tensor, x: Tensor) -> Tensor:
        """Return the gradient (out, in kh kw) of the weight, given g, that of the output."""
        entries = x.shape[1] // self.groups * math.prod(self.kernel)
        shape = g.new_empty(g.shape[1], entries)  # only its shape is read
        return self._backward(g, x, shape, (False, True, False))[1].flatten(1)


class Linear(NamedTuple):
    """The product of a linear layer, with the methods of `Convolution`."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output (..., out) of x (..., in) and weight (out, in)."""
        return F.linear(x, weight, bias)

    def grad_input(self, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of x, given g, that of the output."""
        return g @ weight

    def grad_weight(self, g: Tensor, x: Tensor) -> Tensor:
        """Return the gradient (out, in) of the weight, given g, that of the output."""
        return g.reshape(-1, g.shape[-1]).mT @ x.reshape(-1, x.shape[-1])


@dataclass(frozen=True)
class ProductCall:
    """One call of a layer, without its tensors; every sample sees the adapted weight."""

    spec: UpdateSpec
    product: Linear | Convolution
    dtype: torch.dtype  # of the product; the update itself is made in at least fp32
    recompute: Callable[..., Tensor] | None = field(default=None, kw_only=True)  # x, of tensors kept instead of it
    sample: Sample | None = field(default=None, kw_only=True)  # rows of which a linear product's gradient is made

    @property
    def channels(self) -> int:
        """The axis of y that the out axis of the weight becomes."""
        return 1 if isinstance(self.product, Convolution) else -1

    def build(self, weight: Tensor | None, factors: Factors, kept: Tensor) -> tuple[Tensor, Stats]:
        """Return the adapted weight (out, n) that samples with the update see, and its statistics."""
        return build(weight, factors, kept, self.spec, self.dtype)

    def build_backward(
        self, G: Tensor, weight: Tensor | None, factors: Factors, stats: Stats, needed: bool
    ) -> tuple[Tensor | None, Factors]:
        """Return the adapted weight again, if it is needed, and the gradients of the factors.

        G (out, n) is the gradient of the adapted weight.
        """
        return build_backward(G, weight, factors, stats, self.spec, self.dtype if needed else None)

    def forward(self, x: Tensor, adapted: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return y of x, both in this call's dtype; `adapted` is as `build` makes it."""
        return self.product.forward(x, adapted, None if bias is None else bias.to(self.dtype))

    def grad_adapted(self, g: Tensor, x: Tensor, live: Sequence[bool] | None) -> Tensor:
        """Return the gradient (out, n) of the adapted weight, given g, that of y: an estimate where sampled.

        Of matrices that are not live (None: all are) the result has no values.
        """
        if live is None or (isinstance(self.product, Convolution) and self.product.groups > 1):
            return self._grad_sampled(g, x)  # a group's matrix sees its own channels of x alone
        return self._stacked([self._grad_sampled(part, x) if there else None for part, there in self._parts(g, live)])

    def _parts(self, g: Tensor, live: Sequence[bool]) -> Iterator[tuple[Tensor, bool]]:
        return zip(g.chunk(len(live), dim=self.channels), live, strict=True)

    @staticmethod
    def _stacked(parts: Sequence[Tensor | None]) -> Tensor:
        some = next(part for part in parts if part is not None)
        G = some.new_empty(len(parts), *some.shape)
        for into, part in zip(G, parts, strict=True):
            if part is not None:
                into.copy_(part)
        return G.flatten(0, 1)

    def _grad_sampled(self, g: Tensor, x: Tensor) -> Tensor:
        if self.sample is None or isinstance(self.product, Convolution):  # whose rows overlap
            return self.product.grad_weight(g, x)
        return sampled_product(g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1]), self.sample)

    def grad_weight(self, g: Tensor, x: Tensor, G: Tensor) -> Tensor:
        """Return the gradient (out, n) of the base weight; G is that of the adapted one."""
        return G if self.sample is None else self.product.grad_weight(g, x)

    def grad_input(self, g: Tensor, x: Tensor, adapted: Tensor, weight: Tensor | None) -> Tensor:
        """Return the gradient of x, given g, that of y."""
        return self.product.grad_input(g, x, adapted)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, x, weight, bias, kept, A, B, alpha, gamma, beta, *sources):
        factors = Factors(A, B, alpha, gamma, beta)
        with torch.autocast(x.device.type, enabled=False):
            values = None if weight is None else unpacked(weight)
            adapted, stats = call.build(values, factors, kept)
            x_cast = x.to(call.dtype)
            y = call.forward(x_cast, adapted, values, bias)
            del values
        ctx.call, ctx.x_dtype = call, x.dtype
        # Tensors go nowhere but here: what is saved goes with the backward pass, what is on ctx with the last output.
        ctx.save_for_backward(weight, *stats, *factors, *(sources or (x_cast,)))
        return y.data  # not a view, which F.linear's result is: activations may work on it in place

    @staticmethod
    @once_differentiable
    def backward(ctx, g):  # pyright: ignore[reportIncompatibleMethodOverride] the decorator hides ctx's name
        call = ctx.call
        weight, t, lse, A, B, alpha, gamma, beta, *inputs = ctx.saved_tensors
        _, needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        with torch.autocast(g.device.type, enabled=False):
            x = inputs[0] if call.recompute is None else call.recompute(*inputs).to(call.dtype)
            grad_weight = grad_bias = grad_x = None
            if needs_bias:
                channels = call.channels % g.ndim
                grad_bias = g.sum([d for d in range(g.ndim) if d != channels])
            factors, stats = Factors(A, B, alpha, gamma, beta), Stats(t, lse)
            live = None if needs_weight else stats.live
            if live is not None and not any(live):
                G = g.new_empty(B.shape[0] * B.shape[2], A.shape[2])
            else:
                G = call.grad_adapted(g, x, live).contiguous()
            if needs_weight:
                grad_weight = call.grad_weight(g, x, G).view_as(weight).to(weight.dtype)
            values = None if weight is None or not needs_x else unpacked(weight)
            adapted, grad_factors = call.build_backward(G, values, factors, stats, needs_x)
            del G
            if adapted is not None:
                grad_x = call.grad_input(g, x, adapted, values).to(ctx.x_dtype)
        grad_sources = (None,) * (0 if call.recompute is None else len(inputs))
        return None, grad_x, grad_weight, grad_bias, None, *grad_factors, *grad_sources


def adapted_product(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    factors: Factors,
    kept: Tensor,
    call: ProductCall,
    *,
    source: Source | None = None,
    recompute_output: bool = False,
) -> Tensor:
    """Return y of the layer with weight + updates, or with the updates alone where weight is None; differentiable.

    Args:
        x: input as the product takes it; any floating dtype.
        weight: (out, ...), of out · n entries; frozen or not. One kept in fewer bits (`ops.packed`) is unpacked in
            each pass.
        bias: (out,) or None.
        factors, kept: as in `update.build`.
        call: product and update; a `DropPathCall` for samples that do without the update. Under autocast its dtype
            is autocast's.
        source: how x came about; its tensors are kept instead of x.
        recompute_output: let an activation that follows keep none of y, which is then made again for it.
    """
    axes = len(call.product.kernel) if isinstance(call.product, Convolution) else 0
    if x.ndim == axes + 1:  # a single sample
        return adapted_product(x[None], weight, bias, factors, kept, call)[0]
    _, autocast_dtype, enabled = autocast_state(x.device.type)
    if enabled and x.dtype != torch.float64:
        call = replace(call, dtype=autocast_dtype)
    call = replace(call, recompute=None if source is None else source.recompute)
    # detached: they share storage and version with the originals, but bring no edges into the graph
    sources = () if source is None else tuple(tensor.detach() for tensor in source.tensors)
    y = _Product.apply(call, x, weight, bias, kept, *factors, *sources)
    if recompute_output and y.requires_grad:
        inputs = (x,) if source is None else source.tensors
        rest = (weight, bias, kept, *factors)
        recompute = partial(_recompute_output, call, len(inputs), tuple(tensor is not None for tensor in rest))
        note_product(y, Source((*inputs, *(tensor for tensor in rest if tensor is not None)), recompute))
    return y


def _recompute_output(call: ProductCall, inputs: int, present: tuple[bool, ...], *tensors: Tensor) -> Tensor:
    """Return y of the inputs, and of those of weight, bias, kept and factors that are present."""
    rest = iter(tensors[inputs:])
    weight, bias, kept, A, B, *scalars = (next(rest) if there else None for there in present)
    assert kept is not None
    assert A is not None
    assert B is not None
    with torch.no_grad(), torch.autocast(kept.device.type, enabled=False):
        x = tensors[0] if call.recompute is None else call.recompute(*tensors[:inputs])
        values = None if weight is None else unpacked(weight)
        adapted, _ = call.build(values, Factors(A, B, *scalars), kept)
        return call.forward(x.to(call.dtype), adapted, values, bias)
