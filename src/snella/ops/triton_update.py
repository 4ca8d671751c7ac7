"""The gated update of one weight matrix and its backward on the GPU, by the kernels of `triton_kernels`.

    forward    distances_kernel ─ D, log-sum-exp per chunk ─ softmax_mix_kernel ─ K, lse    (pwl: K = D, one kernel)
               add_gated_kernel ─ weight + gate(K, t)
    backward   gate_backward_kernel ─ D, weight + gate(K, t), column sums of dK·P and dK
               softmax_backward_kernel ─ dL/dD in place of D                        (pwl: written by the first kernel)
               distance_backward_kernel ─ gradients of A, then, with the roles swapped, of B

Everything is fp32 inside, and nothing reads a number back from the GPU. Importing this module needs triton.

Block sizes are tuned at the first call of each shape, and with them the order of sums may change from process to
process; under `torch.use_deterministic_algorithms(True)` they are fixed.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.autotuner import Autotuner

from snella.delta import Gate
from snella.ops.blocks import Scalars
from snella.ops.triton_kernels import (
    FIXED,
    MOST_CHUNKS,
    ROWS,
    add_gated_kernel,
    distance_backward_kernel,
    distances_kernel,
    gate_backward_kernel,
    softmax_backward_kernel,
    softmax_mix_kernel,
)


def _chunks(rows: int, least: int = ROWS) -> tuple[int, int]:
    """Return the rows per chunk, a multiple of ROWS and at least `least`, and how many chunks that makes."""
    chunk = triton.cdiv(max(least, triton.cdiv(rows, MOST_CHUNKS)), ROWS) * ROWS
    return chunk, triton.cdiv(rows, chunk)


def _launch(kernel: Any, columns: int, chunks: int, heads: int, *arguments: Any, **constants: Any) -> None:
    """Run a kernel over its grid; a tuned one with its first blocks where a run has to repeat or is interpreted."""
    fixed = torch.are_deterministic_algorithms_enabled() or not arguments[0].is_cuda
    if fixed and isinstance(kernel, Autotuner):
        constants |= kernel.configs[0].all_kwargs()
        kernel = kernel.fn
    with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device
        kernel[lambda meta: (triton.cdiv(columns, meta["BLOCK_N"]), chunks, heads)](*arguments, **constants)


def _points(factor: Tensor) -> Tensor:
    """Return a factor (H, count, w) as the kernels read it: contiguous (H, w, count) in fp32."""
    return factor.detach().to(torch.float32).transpose(1, 2).contiguous()


def kernel_and_stats(A: Tensor, B: Tensor, scalars: Scalars | None, K: Tensor, *, scale: float) -> Tensor | None:
    """Do as `blocks.kernel_and_stats` does, in fp32. K is contiguous."""
    (heads, n, width), m = A.shape, B.shape[1]
    chunk, chunks = _chunks(m)
    mix = scalars is not None
    alpha, gamma, beta = scalars or (None, None, None)
    parts = K.new_empty((chunks, n)) if mix else None
    _launch(
        distances_kernel, n, chunks, 1, _points(A), _points(B), gamma, K, parts, m, n, chunk, scale,
        H=heads, W=width, MIX=mix,
    )  # fmt: skip
    if not mix:
        return None
    lse = K.new_empty(n)
    _launch(
        softmax_mix_kernel, n, chunks, 1, K, parts, lse, alpha, gamma, beta, m, n, chunk, chunks,
        CHUNKS=triton.next_power_of_2(chunks), **FIXED,
    )  # fmt: skip
    return lse


def add_gated(weight: Tensor | None, K: Tensor, t: Tensor | None, out: Tensor, *, gate: Gate) -> None:
    """Do as `blocks.add_gated` does, adding in fp32. K and out are contiguous."""
    weight = None if weight is None else weight.detach().contiguous()
    _launch(add_gated_kernel, K.numel(), 1, 1, K, t, weight, out, K.numel(), GATE=gate, BLOCK_N=1024)


def update_backward(
    G: Tensor,
    weight: Tensor | None,
    A: Tensor,
    B: Tensor,
    scalars: Scalars | None,
    t: Tensor | None,
    lse: Tensor | None,
    adapted: Tensor | None,
    *,
    gate: Gate,
    scale: float,
) -> tuple[Tensor, Tensor, Scalars | None]:
    """Do as `blocks.update_backward` does. K is made anew, bit for bit.

    Needs one fp32 (m, n) besides the results, and about half of one at most for partial sums.
    """
    (heads, n, width), m = A.shape, B.shape[1]
    mix = scalars is not None
    chunk, chunks = _chunks(m)
    G = G.detach().contiguous()
    weight = weight.detach().contiguous() if weight is not None and adapted is not None else None
    alpha, gamma, beta = scalars or (None, None, None)
    gradient = G.new_empty((m, n), dtype=torch.float32)  # of D; until `softmax_backward_kernel` D itself
    sums = [gradient.new_empty((chunks, n)) for _ in ("alpha", "gamma", "beta")] if mix else [None] * 3
    points_A, points_B = _points(A), _points(B)
    _launch(
        gate_backward_kernel, n, chunks, 1, G, weight, points_A, points_B, alpha, gamma, beta, t, lse,
        adapted, gradient, sums[0], sums[2], m, n, chunk, scale, H=heads, W=width, MIX=mix, GATE=gate,
    )  # fmt: skip
    if mix:
        _launch(
            softmax_backward_kernel, n, chunks, 1, G, gradient, alpha, gamma, beta, t, lse, sums[0], sums[1],
            m, n, chunk, chunks, GATE=gate, CHUNKS=triton.next_power_of_2(chunks), **FIXED,
        )  # fmt: skip
    grad_A = _point_gradients(points_A, points_B, gradient, 1, n, scale).to(A.dtype)
    grad_B = _point_gradients(points_B, points_A, gradient, n, 1, scale).to(B.dtype)
    grad_alpha, grad_gamma, grad_beta = (None if part is None else part.sum() for part in sums)
    if grad_alpha is None or grad_gamma is None or grad_beta is None:
        return grad_A, grad_B, None
    return grad_A, grad_B, (grad_alpha, grad_gamma, grad_beta)


def _point_gradients(P: Tensor, Q: Tensor, gradient: Tensor, P_stride: int, Q_stride: int, scale: float) -> Tensor:
    """Return the gradients (H, p, w) of the points P (H, w, p).

    The strides say where in `gradient` the pair (p, q) is.
    """
    (heads, width, p), q = P.shape, Q.shape[2]
    # The partial sums are heads * width / chunk times the matrix: half of it where the chunks are this long.
    chunk, chunks = _chunks(q, 2 * heads * width)
    parts = P.new_empty((chunks, heads, width, p))
    _launch(
        distance_backward_kernel,
        p,
        chunks,
        heads,
        P,
        Q,
        gradient,
        parts,
        p,
        q,
        P_stride,
        Q_stride,
        chunk,
        scale,
        W=width,
    )
    return parts.sum(0).transpose(1, 2).contiguous()
