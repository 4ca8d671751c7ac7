"""The gated update of one weight matrix and its backward as Triton kernels: the same maths as `snella.delta`.

    forward    _distances ─ D, log-sum-exp per chunk ─ _softmax_mix ─ K, lse          (pwl: K = D, one kernel)
               _add_gated ─ weight + gate(K, t)
    backward   _gate_backward ─ D, weight + gate(K, t), column sums of dK·P and dK
               _softmax_backward ─ dL/dD in place of D                                (pwl: written by the first kernel)
               _distance_backward ─ gradients of A, then, with the roles swapped, of B

A kernel's grid is (blocks of columns, chunks of rows); a program walks down the rows of its chunk, and what it
sums goes into a buffer of one slot per chunk that is added up afterwards: no atomics, so that a run repeats.
Everything is fp32 inside, and nothing reads a number back from the GPU. Importing this module needs triton.

Block sizes are tuned at the first call of each shape, and with them the order of sums may change from process to
process; under `torch.use_deterministic_algorithms(True)` they are fixed.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# (a kernel's body is Triton's language, which its stubs type only in part)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.autotuner import Autotuner

from snella.delta import GAMMA_MIN, Gate

MOST_CHUNKS = 32  # their partial sums are added up within one program's registers
ROWS = 32  # a chunk is a multiple of the largest block along it


def _configs(*blocks: tuple[int, int, int]) -> list[triton.Config]:
    return [triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=1) for m, n, warps in blocks]


# (BLOCK_M, BLOCK_N, warps) that fit into registers at 16 columns a factor, compiled for sm_80 and sm_90. A thread owns
# whole columns, so that coordinates along the rows are uniform loads and column sums mostly stay in the thread.
DISTANCES = _configs((32, 64, 2), (8, 128, 1), (16, 64, 1), (32, 128, 4))
GATES = _configs((16, 64, 2), (8, 64, 1), (4, 128, 1), (16, 128, 4))
FIXED = {"BLOCK_M": 8, "BLOCK_N": 128}  # of the kernels that memory bounds, and that change their input in place

_GAMMA_MIN = tl.constexpr(GAMMA_MIN)
_LOWEST = tl.constexpr(-3e38)  # stands for -inf where inf - inf would be NaN
_SMALLEST = tl.constexpr(1.2e-38)  # below it squares flush to zero on the GPU


@triton.jit
def _clamped(gamma):
    """gamma, read and kept GAMMA_MIN away from zero, and whether it had to be."""
    value = tl.load(gamma).to(tl.float32)
    negative = value.to(tl.int32, bitcast=True) < 0  # the sign of -0.0 counts, as in torch.copysign
    small = tl.abs(value) < _GAMMA_MIN
    return tl.where(small, tl.where(negative, -_GAMMA_MIN, _GAMMA_MIN), value), small


@triton.jit
def _block(rows, cols, m, n):
    """The offsets of a block's entries in a contiguous (m, n), and which lie inside."""
    return rows.to(tl.int64)[:, None] * n + cols[None, :], (rows < m)[:, None] & (cols < n)[None, :]


@triton.jit
def _squared_distance(P, Q, p, q, P_count, Q_count, W: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr):
    """‖P[:, p] − Q[:, q]‖² (BLOCK_P, BLOCK_Q) of points stored (W, count): differences, as products would cancel."""
    squared = tl.zeros((BLOCK_P, BLOCK_Q), tl.float32)
    for k in range(W):
        x = tl.load(P + k * P_count + p, mask=p < P_count, other=0.0)
        y = tl.load(Q + k * Q_count + q, mask=q < Q_count, other=0.0)
        difference = x[:, None] - y[None, :]
        squared = tl.fma(difference, difference, squared)
    return squared


@triton.jit
def _signed_distance(
    A, B, rows, cols, m, n, scale, H: tl.constexpr, W: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """D (BLOCK_M, BLOCK_N). Here and in `_mixed` each fused multiply-add is spelled out: forward and backward must
    get the same bits, or an entry at the threshold would be kept by only one of them."""
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for h in tl.static_range(H):
        distance = tl.sqrt(_squared_distance(B + h * W * m, A + h * W * n, rows, cols, m, n, W, BLOCK_M, BLOCK_N))
        total = total + distance if h % 2 == 0 else total - distance
    return total * scale


@triton.jit
def _mixed(D, inverse, lse, alpha, beta):
    """(K, P): the mixture and its softmax P, the inverse of gamma and the columns' log-sum-exp given."""
    P = tl.exp(tl.fma(D, inverse, -lse[None, :]))
    return tl.fma(P, alpha, D) + beta, P


@triton.jit
def _constant_magnitude(K, t, GATE: tl.constexpr):
    """What the gate multiplies K by, a constant for the gradient."""
    magnitude = tl.abs(K)
    if GATE == "published":
        factor = tl.where(magnitude > t, magnitude, 0.0)
    elif GATE == "soft":
        factor = tl.where(magnitude > t, magnitude - t, 0.0)
    elif GATE == "hard":
        factor = tl.where(magnitude > t, 1.0, 0.0)
    else:
        factor = tl.full(K.shape, 1.0, tl.float32)
    return factor


@triton.jit
def _threshold(t, GATE: tl.constexpr):
    value = 0.0
    if GATE != "none":
        value = tl.load(t).to(tl.float32)
    return value


@triton.autotune(DISTANCES, key=["m", "n", "H", "W"])
@triton.jit
def _distances(
    A, B, gamma, D, chunk_lse, m, n, chunk, scale,
    H: tl.constexpr, W: tl.constexpr, MIX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * chunk
    inverse = 1.0
    if MIX:
        inverse = 1.0 / _clamped(gamma)[0]
    top = tl.full((BLOCK_N,), _LOWEST, tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(first, tl.minimum(first + chunk, m), BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        values = _signed_distance(A, B, rows, cols, m, n, scale, H, W, BLOCK_M, BLOCK_N)
        entries, inside = _block(rows, cols, m, n)
        tl.store(D + entries, values, mask=inside)
        if MIX:
            logits = tl.where((rows < m)[:, None], values * inverse, _LOWEST)
            higher = tl.maximum(top, tl.max(logits, 0))
            total = total * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher[None, :]), 0)
            top = higher
    if MIX:
        tl.store(chunk_lse + tl.program_id(1) * n + cols, top + tl.log(total), mask=cols < n)


@triton.jit
def _softmax_mix(
    K, chunk_lse, lse, alpha, gamma, beta, m, n, chunk, chunks,
    CHUNKS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """K holds D before and K after."""
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * chunk
    slots = tl.arange(0, CHUNKS)
    known = (slots < chunks)[:, None] & (cols < n)[None, :]
    parts = tl.load(chunk_lse + slots[:, None] * n + cols[None, :], mask=known, other=_LOWEST)
    top = tl.max(parts, 0)
    whole = top + tl.log(tl.sum(tl.exp(parts - top[None, :]), 0))
    tl.store(lse + cols, whole, mask=(cols < n) & (first == 0))
    inverse = 1.0 / _clamped(gamma)[0]
    alpha_value, beta_value = tl.load(alpha).to(tl.float32), tl.load(beta).to(tl.float32)
    for start in range(first, tl.minimum(first + chunk, m), BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        entries, inside = _block(rows, cols, m, n)
        D = tl.load(K + entries, mask=inside, other=0.0)
        tl.store(K + entries, _mixed(D, inverse, whole, alpha_value, beta_value)[0], mask=inside)


@triton.jit
def _add_gated(K, t, weight, out, size, GATE: tl.constexpr, BLOCK_N: tl.constexpr):
    entries = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = entries < size
    values = tl.load(K + entries, mask=inside, other=0.0)
    update = values * _constant_magnitude(values, _threshold(t, GATE), GATE)
    if weight is not None:
        update = tl.load(weight + entries, mask=inside, other=0.0).to(tl.float32) + update
    tl.store(out + entries, update.to(out.dtype.element_ty), mask=inside)


@triton.autotune(GATES, key=["m", "n", "H", "W"])
@triton.jit
def _gate_backward(
    G, weight, A, B, alpha, gamma, beta, t, lse, adapted, gradient, mixed_sums, plain_sums, m, n, chunk, scale,
    H: tl.constexpr, W: tl.constexpr, MIX: tl.constexpr, GATE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Writes the adapted weight; into `gradient` D, or for `pwl` dL/dD; and a chunk's column sums of dK·P and dK."""
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * chunk
    threshold = _threshold(t, GATE)
    mixed_sum = tl.zeros((BLOCK_N,), tl.float32)
    plain_sum = tl.zeros((BLOCK_N,), tl.float32)
    if MIX:
        inverse = 1.0 / _clamped(gamma)[0]
        alpha_value, beta_value = tl.load(alpha).to(tl.float32), tl.load(beta).to(tl.float32)
        column_lse = tl.load(lse + cols, mask=cols < n, other=0.0)
    for start in range(first, tl.minimum(first + chunk, m), BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        entries, inside = _block(rows, cols, m, n)
        D = _signed_distance(A, B, rows, cols, m, n, scale, H, W, BLOCK_M, BLOCK_N)
        K = D
        if MIX:
            K, P = _mixed(D, inverse, column_lse, alpha_value, beta_value)
        factor = _constant_magnitude(K, threshold, GATE)
        dK = tl.load(G + entries, mask=inside, other=0.0).to(tl.float32) * factor
        if MIX:
            dK = tl.where(inside, dK, 0.0)  # beyond the last row P can overflow, and 0 · inf would reach the sums
            mixed_sum += tl.sum(dK * tl.where(inside, P, 0.0), 0)
            plain_sum += tl.sum(dK, 0)
            tl.store(gradient + entries, D, mask=inside)
        else:
            tl.store(gradient + entries, dK, mask=inside)
        if adapted is not None:
            update = K * factor
            if weight is not None:
                update = tl.load(weight + entries, mask=inside, other=0.0).to(tl.float32) + update
            tl.store(adapted + entries, update.to(adapted.dtype.element_ty), mask=inside)
    if MIX:
        slot = tl.program_id(1) * n + cols
        tl.store(mixed_sums + slot, mixed_sum, mask=cols < n)
        tl.store(plain_sums + slot, plain_sum, mask=cols < n)


@triton.jit
def _softmax_backward(
    G, gradient, alpha, gamma, beta, t, lse, mixed_sums, gamma_sums, m, n, chunk, chunks,
    GATE: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`gradient` holds D before and dL/dD after; the chunk's column sums of dL/dgamma go into `gamma_sums`."""
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * chunk
    slots = tl.arange(0, CHUNKS)
    known = (slots < chunks)[:, None] & (cols < n)[None, :]
    mean = tl.sum(tl.load(mixed_sums + slots[:, None] * n + cols[None, :], mask=known, other=0.0), 0)
    column_lse = tl.load(lse + cols, mask=cols < n, other=0.0)
    threshold = _threshold(t, GATE)
    gamma_value, small = _clamped(gamma)
    inverse = 1.0 / gamma_value
    alpha_value, beta_value = tl.load(alpha).to(tl.float32), tl.load(beta).to(tl.float32)
    gamma_sum = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(first, tl.minimum(first + chunk, m), BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        entries, inside = _block(rows, cols, m, n)
        D = tl.load(gradient + entries, mask=inside, other=0.0)
        K, P = _mixed(D, inverse, column_lse, alpha_value, beta_value)
        factor = _constant_magnitude(K, threshold, GATE)
        dK = tl.load(G + entries, mask=inside, other=0.0).to(tl.float32) * factor
        through_softmax = alpha_value * inverse * P * (dK - mean[None, :])
        gamma_sum += tl.sum(tl.where(inside, through_softmax * D, 0.0), 0)
        tl.store(gradient + entries, dK + through_softmax, mask=inside)
    gamma_sum = tl.where(small, 0.0, -gamma_sum * inverse)
    tl.store(gamma_sums + tl.program_id(1) * n + cols, gamma_sum, mask=cols < n)


@triton.autotune(DISTANCES, key=["P_count", "Q_count", "P_stride", "W"])
@triton.jit
def _distance_backward(
    P, Q, gradient, parts, P_count, Q_count, P_stride, Q_stride, chunk, scale,
    W: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of the points P of head program_id(2), from the chunk program_id(1) of Q: Σ_q ratio · (P − Q).

    P's points are the columns of a block here, whichever side of the matrix they are on: the strides say.
    """
    head = tl.program_id(2)
    first = tl.program_id(1) * chunk
    P += head * W * P_count
    Q += head * W * Q_count
    parts += (tl.program_id(1) * tl.num_programs(2) + head) * W * P_count
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    signed_scale = tl.where(head % 2 == 0, scale, -scale)
    for start in range(first, tl.minimum(first + chunk, Q_count), BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        squared = _squared_distance(Q, P, rows, cols, Q_count, P_count, W, BLOCK_M, BLOCK_N)
        entries = rows.to(tl.int64)[:, None] * Q_stride + cols.to(tl.int64)[None, :] * P_stride
        inside = (rows < Q_count)[:, None] & (cols < P_count)[None, :]
        dD = tl.load(gradient + entries, mask=inside, other=0.0) * signed_scale
        ratio = tl.where(squared > _SMALLEST, dD * tl.rsqrt(tl.maximum(squared, _SMALLEST)), 0.0)
        for k in range(W):
            x = tl.load(Q + k * Q_count + rows, mask=rows < Q_count, other=0.0)
            y = tl.load(P + k * P_count + cols, mask=cols < P_count, other=0.0)
            part = tl.sum(ratio * (y[None, :] - x[:, None]), 0)
            if start > first:
                part += tl.load(parts + k * P_count + cols, mask=cols < P_count, other=0.0)
            tl.store(parts + k * P_count + cols, part, mask=cols < P_count)
        tl.debug_barrier()  # the next block's threads add to what this block's have stored


def _chunks(rows: int, least: int = ROWS) -> tuple[int, int]:
    """Rows per chunk, a multiple of ROWS and at least `least`, and how many chunks that makes."""
    chunk = triton.cdiv(max(least, triton.cdiv(rows, MOST_CHUNKS)), ROWS) * ROWS
    return chunk, triton.cdiv(rows, chunk)


def _launch(kernel: Any, columns: int, chunks: int, heads: int, *arguments: Any, **constants: Any) -> None:
    """Runs a kernel over its grid; a tuned one with its first blocks where a run has to repeat or is interpreted."""
    fixed = torch.are_deterministic_algorithms_enabled() or not arguments[0].is_cuda
    if fixed and isinstance(kernel, Autotuner):
        constants |= kernel.configs[0].all_kwargs()
        kernel = kernel.fn
    with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device
        kernel[lambda meta: (triton.cdiv(columns, meta["BLOCK_N"]), chunks, heads)](*arguments, **constants)


def _points(factor: Tensor) -> Tensor:
    """A factor (H, count, w) as the kernels read it: contiguous (H, w, count) in fp32."""
    return factor.detach().to(torch.float32).transpose(1, 2).contiguous()


def kernel_and_stats(
    A: Tensor, B: Tensor, scalars: tuple[Tensor, Tensor, Tensor] | None, K: Tensor, *, scale: float
) -> Tensor | None:
    """See `blocks.kernel_and_stats`; in fp32. K is contiguous."""
    (heads, n, width), m = A.shape, B.shape[1]
    chunk, chunks = _chunks(m)
    mix = scalars is not None
    alpha, gamma, beta = scalars or (None, None, None)
    parts = K.new_empty((chunks, n)) if mix else None
    _launch(
        _distances, n, chunks, 1, _points(A), _points(B), gamma, K, parts, m, n, chunk, scale,
        H=heads, W=width, MIX=mix,
    )  # fmt: skip
    if not mix:
        return None
    lse = K.new_empty(n)
    _launch(
        _softmax_mix, n, chunks, 1, K, parts, lse, alpha, gamma, beta, m, n, chunk, chunks,
        CHUNKS=triton.next_power_of_2(chunks), **FIXED,
    )  # fmt: skip
    return lse


def add_gated(weight: Tensor | None, K: Tensor, t: Tensor | None, out: Tensor, *, gate: Gate) -> None:
    """See `blocks.add_gated`; added in fp32. K and out are contiguous."""
    weight = None if weight is None else weight.detach().contiguous()
    _launch(_add_gated, K.numel(), 1, 1, K, t, weight, out, K.numel(), GATE=gate, BLOCK_N=1024)


def update_backward(
    G: Tensor,
    weight: Tensor | None,
    A: Tensor,
    B: Tensor,
    scalars: tuple[Tensor, Tensor, Tensor] | None,
    t: Tensor | None,
    lse: Tensor | None,
    adapted: Tensor | None,
    *,
    gate: Gate,
    scale: float,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """See `blocks.update_backward`. K is made anew, bit for bit.

    Needs one fp32 (m, n) besides the results, and about half of one at most for partial sums.
    """
    (heads, n, width), m = A.shape, B.shape[1]
    mix = scalars is not None
    chunk, chunks = _chunks(m)
    G = G.detach().contiguous()
    weight = weight.detach().contiguous() if weight is not None and adapted is not None else None
    alpha, gamma, beta = scalars or (None, None, None)
    gradient = G.new_empty((m, n), dtype=torch.float32)  # of D; until `_softmax_backward` D itself
    sums = [gradient.new_empty((chunks, n)) for _ in ("alpha", "gamma", "beta")] if mix else [None] * 3
    points_A, points_B = _points(A), _points(B)
    _launch(
        _gate_backward, n, chunks, 1, G, weight, points_A, points_B, alpha, gamma, beta, t, lse,
        adapted, gradient, sums[0], sums[2], m, n, chunk, scale, H=heads, W=width, MIX=mix, GATE=gate,
    )  # fmt: skip
    if mix:
        _launch(
            _softmax_backward, n, chunks, 1, G, gradient, alpha, gamma, beta, t, lse, sums[0], sums[1],
            m, n, chunk, chunks, GATE=gate, CHUNKS=triton.next_power_of_2(chunks), **FIXED,
        )  # fmt: skip
    grad_A = _point_gradients(points_A, points_B, gradient, 1, n, scale).to(A.dtype)
    grad_B = _point_gradients(points_B, points_A, gradient, n, 1, scale).to(B.dtype)
    of_alpha, of_gamma, of_beta = (None if part is None else part.sum() for part in sums)
    if of_alpha is None or of_gamma is None or of_beta is None:
        return grad_A, grad_B, None
    return grad_A, grad_B, (of_alpha, of_gamma, of_beta)


def _point_gradients(P: Tensor, Q: Tensor, gradient: Tensor, P_stride: int, Q_stride: int, scale: float) -> Tensor:
    """Gradients (H, p, w) of the points P (H, w, p); the strides say where in `gradient` the pair (p, q) is."""
    (heads, width, p), q = P.shape, Q.shape[2]
    # The partial sums are heads * width / chunk times the matrix: half of it where the chunks are this long.
    chunk, chunks = _chunks(q, 2 * heads * width)
    parts = P.new_empty((chunks, heads, width, p))
    _launch(
        _distance_backward, p, chunks, heads, P, Q, gradient, parts, p, q, P_stride, Q_stride, chunk, scale, W=width
    )
    return parts.sum(0).transpose(1, 2).contiguous()
