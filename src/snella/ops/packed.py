"""Frozen weights kept in fewer bits: a tensor that takes 16, 8 or 4 bits an entry and is read as one of 32.

    bf16    16 bits   the nearest number of that format
    int8     8 bits   a row's entries as multiples of 1/127 of its largest one
    nf4    4.5 bits   of 64 entries in a row each as one of 16 levels, quantiles of a normal distribution, times
                      their largest one (QLoRA, Dettmers et al. 2023, arXiv 2305.14314, appendix E)

An operation sees the values that the bits stand for, made for it and let go; products keep the bits for their backward
pass, so that nothing of the weight's full size stays. Such a weight cannot train or be written to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
BLOCK = 64  # entries of nf4 that share a factor
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@lru_cache(maxsize=4)
def _levels(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the 16 levels of nf4, and the 15 borders between them."""
    levels = torch.tensor(LEVELS, device=device)
    return levels, (levels[1:] + levels[:-1]) / 2


def _pack_bf16(weight: Tensor) -> tuple[Tensor, ...]:
    return (weight.to(torch.bfloat16),)


def _unpack_bf16(parts: Sequence[Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return parts[0].to(dtype)


def _factors_of(rows: Tensor, steps: int) -> Tensor:
    """Return what `steps` of each row's factors are its largest entry; 1 for rows of zeros."""
    largest = rows.abs().amax(dim=-1, keepdim=True).float()
    return torch.where(largest == 0, 1, largest / steps)


def _pack_int8(weight: Tensor) -> tuple[Tensor, ...]:
    rows = weight.flatten(1)
    factors = _factors_of(rows, 127)
    return (rows / factors).round_().to(torch.int8), factors


def _unpack_int8(parts: Sequence[Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    numbers, factors = parts
    return numbers.float().mul_(factors).to(dtype).view(shape)


def _pack_nf4(weight: Tensor) -> tuple[Tensor, ...]:
    flat = F.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK).float()
    factors = _factors_of(flat, 1)
    codes = torch.bucketize(flat / factors, _levels(weight.device)[1]).to(torch.uint8)
    return codes[:, ::2] * 16 + codes[:, 1::2], factors  # two entries a byte


def _unpack_nf4(parts: Sequence[Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
    pairs, factors = parts
    levels, _ = _levels(pairs.device)
    codes = torch.stack((pairs >> 4, pairs & 15), dim=-1).view(len(pairs), BLOCK).int()
    values = levels[codes].mul_(factors)
    return values.flatten()[: shape.numel()].to(dtype).view(shape)


class Format(NamedTuple):
    """How a weight (out, ...) becomes few bits, and a weight of a shape and dtype again."""

    pack: Callable[[Tensor], tuple[Tensor, ...]]
    unpack: Callable[[Sequence[Tensor], torch.Size, torch.dtype], Tensor]


FORMATS = {
    "bf16": Format(_pack_bf16, _unpack_bf16),
    "int8": Format(_pack_int8, _unpack_int8),
    "nf4": Format(_pack_nf4, _unpack_nf4),
}


class PackedWeight(Tensor):
    """A weight in one of the formats; shape, dtype and device are those of the values that it stands for."""

    form: str
    parts: tuple[Tensor, ...]

    @staticmethod
    def __new__(cls, parts: Sequence[Tensor], form: str, shape: torch.Size, dtype: torch.dtype) -> PackedWeight:
        """Return a weight of what the format's `pack` gave."""
        made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=parts[0].device)  # type: ignore[attr-defined]
        made.form, made.parts = form, tuple(parts)
        for i, part in enumerate(parts):
            setattr(made, f"part_{i}", part)  # where torch looks for what a tensor consists of
        return made

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the values, as a plain tensor; of the weight's own dtype where none is given."""
        return FORMATS[self.form].unpack(self.parts, self.shape, dtype or self.dtype)

    def __repr__(self, **_: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"PackedWeight({self.form}, {tuple(self.shape)}, {self.dtype}, device={self.device})"

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return [f"part_{i}" for i in range(len(self.parts))], (self.form, self.shape, self.dtype)

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: Any, size: Any, stride: Any) -> PackedWeight:
        return PackedWeight([inner[name] for name in sorted(inner)], *context)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():  # the results are plain tensors
            if len(args) > 1 and isinstance(args[1], cls) and not isinstance(args[0], cls):
                if func is F.linear:
                    return _linear(*args, **kwargs)
                if func is F.conv2d:
                    return _conv2d(*args, **kwargs)
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, cls):
            if func in (aten.detach.default, aten.alias.default):
                return first._with(first.parts)
            if func is aten.clone.default:
                return first._with([part.clone() for part in first.parts])
            if func is aten._to_copy.default and (kwargs.get("dtype") or first.dtype).is_floating_point:
                to = {name: kwargs[name] for name in ("device", "non_blocking") if name in kwargs}
                return first._with([part.to(**to) for part in first.parts], kwargs.get("dtype"))
            if func._schema.is_mutable:
                raise RuntimeError(
                    f"a weight that is kept as {first.form} cannot be written to; unpack it first: "
                    "snella.set_base_precision(model, 'fp32')"
                )
        args, kwargs = tree_map_only(PackedWeight, PackedWeight.dequantize, (args, kwargs))
        return func(*args, **kwargs)

    def _with(self, parts: Sequence[Tensor], dtype: torch.dtype | None = None) -> PackedWeight:
        return PackedWeight(parts, self.form, self.shape, dtype or self.dtype)


def pack(weight: Tensor, form: str) -> PackedWeight:
    """Return a weight (out, ...) of a floating dtype in a format: bf16, int8 or nf4."""
    values = weight.detach()
    return PackedWeight(FORMATS[form].pack(values), form, values.shape, values.dtype)


def is_packed(weight: Tensor) -> bool:
    """Return whether a weight is kept in fewer bits than its dtype says: by this module or by torchao."""
    return isinstance(weight, PackedWeight) or type(weight).__module__.startswith("torchao.")


def unpacked(weight: Tensor) -> Tensor:
    """Return the values of a weight as a plain tensor: the weight itself, where it is one."""
    return weight.dequantize() if is_packed(weight) else weight


class _Product(torch.autograd.Function):
    """A product with a packed weight and a bias, of which the backward pass keeps the bits alone.

    `forward(x, weight, bias)` is the product, `grad_input(g, weight)` its gradient for x.
    """

    @staticmethod
    def forward(ctx, forward, grad_input, channels, x, weight, bias):
        ctx.grad_input, ctx.channels = grad_input, channels
        ctx.save_for_backward(weight)
        return forward(x, weight.dequantize(x.dtype), bias).data  # not a view: it may be worked on in place

    @staticmethod
    @once_differentiable
    def backward(ctx, g):  # pyright: ignore[reportIncompatibleMethodOverride] the decorator hides ctx's name
        *_, needs_x, _, needs_bias = ctx.needs_input_grad
        (weight,) = ctx.saved_tensors
        grad_x = ctx.grad_input(g, weight.dequantize(g.dtype)) if needs_x else None
        channels = ctx.channels % g.ndim
        grad_bias = g.sum([d for d in range(g.ndim) if d != channels]) if needs_bias else None
        return None, None, None, grad_x, None, grad_bias


def _in_dtype(x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return input and bias in the dtype of the product, which autocast may say."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) and x.dtype != torch.float64 else x.dtype
    return x.to(dtype), None if bias is None else bias.to(dtype)


def _linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    x, bias = _in_dtype(x, bias)
    return _Product.apply(F.linear, torch.matmul, -1, x, weight, bias)


def _conv2d(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    settings = (stride, padding, dilation, groups)
    if isinstance(padding, str) or x.ndim == 3:
        return F.conv2d(x, weight.dequantize(x.dtype), bias, *settings)

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, *settings)

    def grad_input(g: Tensor, weight: Tensor) -> Tensor:
        return conv2d_input(shape, weight, g, *settings)

    x, bias = _in_dtype(x, bias)
    shape = x.shape
    return _Product.apply(forward, grad_input, 1, x, weight, bias)
