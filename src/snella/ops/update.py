"""The adapted weight W + delta of a layer as one differentiable step that keeps nothing of its size.

    forward     factors ─ K ─ threshold t ─ gate ─ W + delta          kept: factors, t, log-sum-exps
    backward    factors, t, log-sum-exps ─ K again, by the same code, and the gradients in the same pass

A layer holds S matrices on top of each other: A (S, H, n, r/H), B (S, H, m, r/H), scalars and budgets (S,).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import ModuleType
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from snella.delta import Gate, Kernel, gated, kernel_matrix
from snella.ops import blocks, native
from snella.ops.rematerialize import is_transformed
from snella.ops.selection import budget_threshold, triton_update

Index = int | slice  # of one of a layer's matrices, or of all of them


class UpdateSpec(NamedTuple):
    """The settings of an update besides its tensors; see `delta.delta_weight`."""

    kernel: Kernel
    gate: Gate
    scale: float


class Factors(NamedTuple):
    """The tensors that make a layer's updates; the scalars are None for kernel `pwl`."""

    A: Tensor
    B: Tensor
    alpha: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None

    def matrix(self, i: Index) -> tuple[Tensor, Tensor, blocks.Scalars | None]:
        """Return A, B and the scalars of one or all of the S matrices, in the dtype to compute in (at least fp32)."""
        dtype = torch.promote_types(self.A.dtype, torch.float32)
        A, B, *scalars = (None if tensor is None else tensor.detach()[i].to(dtype) for tensor in self)
        assert A is not None
        assert B is not None
        alpha, gamma, beta = scalars
        if alpha is None or gamma is None or beta is None:
            return A, B, None
        return A, B, (alpha, gamma, beta)


class Stats(NamedTuple):
    """Thresholds (S,) and log-sum-exps (S, n), which the backward pass needs besides weight and factors.

    On the CPU the threshold of a matrix without a budget is infinite: it costs nothing, in either pass.
    """

    t: Tensor | None
    lse: Tensor | None

    @property
    def live(self) -> tuple[bool, ...] | None:
        """Return which of the S matrices have an update; None: all may have (elsewhere a GPU would be waited for)."""
        if self.t is None or self.t.device.type != "cpu":
            return None
        live = tuple(map(math.isfinite, self.t.tolist()))
        return None if all(live) else live

    def matrix(self, i: Index) -> tuple[Tensor | None, Tensor | None]:
        """Return the threshold (0-d) and the log-sum-exps (n) of one of the S matrices, or these of all."""
        return (None if self.t is None else self.t[i]), (None if self.lse is None else self.lse[i])


def _backend(A: Tensor) -> ModuleType:
    """Return the module that computes for these factors (H, n, r/H) of a matrix."""
    if native.available(A):
        return native
    kernels = triton_update() if A.is_cuda and A.dtype == torch.float32 else None
    return blocks if kernels is None else kernels


def _indices(backend: ModuleType, splits: int) -> Iterable[Index]:
    """Return what the backend computes at once: each of the matrices, or with Triton's kernels all of them."""
    return range(splits) if backend in (native, blocks) else [slice(None)]


def build(
    weight: Tensor | None, factors: Factors, kept: Tensor, spec: UpdateSpec, dtype: torch.dtype
) -> tuple[Tensor, Stats]:
    """Return weight (S m, n) + updates, or the updates where weight is None, in `dtype`; and the statistics.

    kept (S,), int64, are the budgets.
    """
    _, _, n, _ = factors.A.shape
    splits, _, m, _ = factors.B.shape
    adapted = torch.empty(splits, m, n, dtype=dtype, device=factors.A.device)
    parts = None if weight is None else weight.detach().reshape(splits, m, n)
    backend, computed = _backend(factors.matrix(0)[0]), torch.promote_types(factors.A.dtype, torch.float32)
    thresholds = None if spec.gate == "none" else adapted.new_empty(splits, dtype=computed)
    lses = None if spec.kernel == "pwl" else adapted.new_zeros(splits, n, dtype=computed)
    for i in _indices(backend, splits):
        if thresholds is not None and kept.device.type == "cpu" and isinstance(i, int) and not kept[i]:
            adapted[i] = 0 if parts is None else parts[i]
            thresholds[i] = math.inf
            continue
        A, B, scalars = factors.matrix(i)
        K = adapted[i] if dtype == computed else torch.empty_like(adapted[i], dtype=computed)
        lse = backend.kernel_and_stats(A, B, scalars, K, scale=spec.scale)
        if lses is not None:
            lses[i] = lse
        t = None
        if thresholds is not None:
            t = thresholds[i] = budget_threshold(K, kept[i], spec.gate == "soft")
        backend.add_gated(None if parts is None else parts[i], K, t, adapted[i], gate=spec.gate)
    return adapted.view(splits * m, n), Stats(thresholds, lses)


def build_backward(
    G: Tensor, weight: Tensor | None, factors: Factors, stats: Stats, spec: UpdateSpec, dtype: torch.dtype | None
) -> tuple[Tensor | None, Factors]:
    """Return what `build` gave once more, in `dtype` (None: it is not needed), and the gradients of the factors.

    G (S m, n) is the gradient of the adapted weight; of matrices that are not live it is not looked at.
    """
    _, _, n, _ = factors.A.shape
    splits, _, m, _ = factors.B.shape
    adapted = None if dtype is None else torch.empty(splits, m, n, dtype=dtype, device=G.device)
    parts = None if weight is None else weight.detach().reshape(splits, m, n)
    gradients = cast(Factors, Factors._make(None if tensor is None else torch.zeros_like(tensor) for tensor in factors))
    backend, live = _backend(factors.matrix(0)[0]), stats.live
    for i in _indices(backend, splits):
        into = None if adapted is None else adapted[i]
        if live is not None and isinstance(i, int) and not live[i]:
            if into is not None:
                into.copy_(parts[i]) if parts is not None else into.zero_()
            continue
        A, B, scalars = factors.matrix(i)
        t, lse = stats.matrix(i)
        part, values = G.view(splits, m, n)[i], None if parts is None else parts[i]
        grad_A, grad_B, grad_scalars = backend.update_backward(
            part, values, A, B, scalars, t, lse, into, gate=spec.gate, scale=spec.scale
        )
        for gradient, values in zip(gradients, (grad_A, grad_B, *(grad_scalars or ())), strict=False):
            if gradient is not None:
                gradient[i] = values
    return None if adapted is None else adapted.view(splits * m, n), gradients


class _AdaptedWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, kept, spec, dtype, *factors):
        adapted, stats = build(weight, Factors(*factors), kept, spec, dtype)
        ctx.save_for_backward(*stats, *factors)
        ctx.spec = spec
        return adapted

    @staticmethod
    @once_differentiable
    def backward(ctx, G):  # pyright: ignore[reportIncompatibleMethodOverride] the decorator hides ctx's name
        t, lse, *factors = ctx.saved_tensors
        _, gradients = build_backward(G.contiguous(), None, Factors(*factors), Stats(t, lse), ctx.spec, None)
        return G if ctx.needs_input_grad[0] else None, None, None, None, *gradients


def adapted_weight(
    weight: Tensor | None, factors: Factors, kept: Tensor, spec: UpdateSpec, dtype: torch.dtype
) -> Tensor:
    """Return weight (S m, n) + updates, or the updates where weight is None, in `dtype`; differentiable.

    kept (S,), int64, are the budgets.
    """
    return _AdaptedWeight.apply(weight, kept, spec, dtype, *factors)


def is_traced(x: Tensor) -> bool:
    """Return whether operations are looked into (torch's compile, func, jit.trace) or only planned (meta tensors).

    There the update has to be made by `delta_by_definition`.
    """
    planned = torch.compiler.is_compiling() or torch.jit.is_tracing() or x.device.type == "meta"
    return planned or is_transformed()


def delta_by_definition(factors: Factors, kept: Tensor, spec: UpdateSpec) -> Tensor:
    """Return the updates (S m, n) by plain operations, which torch.compile sees through and fuses by itself."""
    A, B, *scalars = factors
    deltas = []
    for i, budget in enumerate(kept):
        alpha, gamma, beta = (None if scalar is None else scalar[i] for scalar in scalars)
        K = kernel_matrix(A[i], B[i], alpha, gamma, beta, kernel=spec.kernel, scale=spec.scale)
        t = None if spec.gate == "none" else budget_threshold(K.detach(), budget, spec.gate == "soft")
        deltas.append(gated(K, t, spec.gate))
    return torch.cat(deltas)
