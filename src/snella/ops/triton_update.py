"""The gated updates of a layer's matrices and their backward on the GPU, by the kernels of `triton_kernels`.

    forward    distances_kernel ─ D, log-sum-exp per chunk ─ softmax_mix_kernel ─ K, lse    (pwl: K = D, one kernel)
               digit_counts_kernel, four times, selected_kernel ─ t
               add_gated_kernel ─ weight + gate(K, t)
    backward   gate_backward_kernel ─ D, weight + gate(K, t), column sums of dK·P and dK
               softmax_backward_kernel ─ dL/dD in place of D                        (pwl: written by the first kernel)
               distance_backward_kernel ─ gradients of A, then, with the roles swapped, of B

All S matrices of a layer take part in one launch: factors (S, H, n, r/H) and (S, H, m, r/H), matrices (S, m, n),
scalars and thresholds (S,), log-sum-exps (S, n). Everything is fp32 inside, and nothing reads a number back from the
GPU. Importing this module needs triton.

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
    DIGITS,
    FIXED,
    MOST_CHUNKS,
    ROUNDS,
    ROWS,
    add_gated_kernel,
    digit_counts_kernel,
    distance_backward_kernel,
    distances_kernel,
    gate_backward_kernel,
    selected_kernel,
    softmax_backward_kernel,
    softmax_mix_kernel,
)


def _chunks(rows: int, least: int = ROWS) -> tuple[int, int]:
    """Return the rows per chunk, a multiple of ROWS and at least `least`, and how many chunks that makes."""
    chunk = triton.cdiv(max(least, triton.cdiv(rows, MOST_CHUNKS)), ROWS) * ROWS
    return chunk, triton.cdiv(rows, chunk)


def _launch(kernel: Any, columns: int, chunks: int, depth: int, *arguments: Any, **constants: Any) -> None:
    """Run a kernel over its grid, whose last axis has `depth` programs.

    A tuned kernel has its first blocks where a run has to repeat or is interpreted.
    """
    fixed = torch.are_deterministic_algorithms_enabled() or not arguments[0].is_cuda
    if fixed and isinstance(kernel, Autotuner):
        constants |= kernel.configs[0].all_kwargs()
        kernel = kernel.fn
    with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device
        kernel[lambda meta: (triton.cdiv(columns, meta.get("BLOCK_N", 1)), chunks, depth)](*arguments, **constants)


def _points(factor: Tensor) -> Tensor:
    """Return factors (S, H, count, w) as the kernels read them: contiguous (S, H, w, count) in fp32."""
    return factor.detach().to(torch.float32).transpose(2, 3).contiguous()


def kernel_and_stats(A: Tensor, B: Tensor, scalars: Scalars | None, K: Tensor, *, scale: float) -> Tensor | None:
    """Do as `blocks.kernel_and_stats` does with each matrix, in fp32. K is contiguous."""
    (splits, heads, n, width), m = A.shape, B.shape[2]
    chunk, chunks = _chunks(m)
    mix = scalars is not None
    alpha, gamma, beta = scalars or (None, None, None)
    parts = K.new_empty((splits, chunks, n)) if mix else None
    _launch(
        distances_kernel, n, chunks, splits, _points(A), _points(B), gamma, K, parts, m, n, chunk, scale,
        H=heads, W=width, MIX=mix,
    )  # fmt: skip
    if not mix:
        return None
    lse = K.new_empty((splits, n))
    _launch(
        softmax_mix_kernel, n, chunks, splits, K, parts, lse, alpha, gamma, beta, m, n, chunk, chunks,
        CHUNKS=triton.next_power_of_2(chunks), **FIXED,
    )  # fmt: skip
    return lse


def add_gated(weight: Tensor | None, K: Tensor, t: Tensor | None, out: Tensor, *, gate: Gate) -> None:
    """Do as `blocks.add_gated` does with each matrix, adding in fp32. K and out are contiguous."""
    weight = None if weight is None else weight.detach().contiguous()
    size = K[0].numel()
    _launch(add_gated_kernel, size, 1, len(K), K, t, weight, out, size, GATE=gate, BLOCK_N=1024)


def select_by_counts(values: Tensor, ranks: Tensor) -> Tensor:
    """Select as `selection.Select` says, of fp32 entries: digit by digit, each from one count over all matrices."""
    (splits, size), each = values.shape, ranks.shape[1]
    values, ranks = values.contiguous(), ranks.contiguous()
    counts = torch.zeros(splits, each, ROUNDS, DIGITS, dtype=torch.int32, device=values.device)
    for i in range(ROUNDS):
        _launch(
            digit_counts_kernel, size, 1, splits * each, values, ranks, counts, size,
            EACH=each, ROUND=i, BLOCK_N=4096,
        )  # fmt: skip
    selected = values.new_empty((splits, each))
    _launch(selected_kernel, 1, 1, splits * each, ranks, counts, selected)
    return selected


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
    """Do as `blocks.update_backward` does with each matrix. K is made anew, bit for bit.

    Needs one fp32 (S, m, n) besides the results, and about half of one at most for partial sums.
    """
    (splits, heads, n, width), m = A.shape, B.shape[2]
    mix = scalars is not None
    chunk, chunks = _chunks(m)
    G = G.detach().contiguous()
    weight = weight.detach().contiguous() if weight is not None and adapted is not None else None
    alpha, gamma, beta = scalars or (None, None, None)
    gradient = torch.empty_like(G, dtype=torch.float32)  # of D; until `softmax_backward_kernel` D itself
    sums = gradient.new_empty((3, splits, chunks, n)) if mix else None  # of alpha, gamma and beta
    mixed, through, unmixed = (None, None, None) if sums is None else sums
    points_A, points_B = _points(A), _points(B)
    _launch(
        gate_backward_kernel, n, chunks, splits, G, weight, points_A, points_B, alpha, gamma, beta, t, lse,
        adapted, gradient, mixed, unmixed, m, n, chunk, scale, H=heads, W=width, MIX=mix, GATE=gate,
    )  # fmt: skip
    if mix:
        _launch(
            softmax_backward_kernel, n, chunks, splits, G, gradient, alpha, gamma, beta, t, lse, mixed, through,
            m, n, chunk, chunks, GATE=gate, CHUNKS=triton.next_power_of_2(chunks), **FIXED,
        )  # fmt: skip
    grad_A = _point_gradients(points_A, points_B, gradient, 1, n, scale).to(A.dtype)
    grad_B = _point_gradients(points_B, points_A, gradient, n, 1, scale).to(B.dtype)
    if sums is None:
        return grad_A, grad_B, None
    grad_alpha, grad_gamma, grad_beta = sums.sum((2, 3))
    return grad_A, grad_B, (grad_alpha, grad_gamma, grad_beta)


def _point_gradients(P: Tensor, Q: Tensor, gradient: Tensor, P_stride: int, Q_stride: int, scale: float) -> Tensor:
    """Return the gradients (S, H, p, w) of the points P (S, H, w, p).

    The strides say where in a matrix of `gradient` the pair (p, q) is.
    """
    (splits, heads, width, p), q = P.shape, Q.shape[3]
    # The partial sums are heads * width / chunk times the matrix: half of it where the chunks are this long.
    chunk, chunks = _chunks(q, 2 * heads * width)
    parts = P.new_empty((chunks, splits, heads, width, p))
    _launch(
        distance_backward_kernel, p, chunks, splits * heads, P, Q, gradient, parts, p, q, P_stride, Q_stride,
        chunk, scale, H=heads, W=width,
    )  # fmt: skip
    return parts.sum(0).transpose(2, 3).contiguous()
