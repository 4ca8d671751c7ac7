"""The kernels of `triton_update`, in Triton's language: the same maths as `snella.delta`, all fp32 inside.

A kernel's grid is (blocks of columns, chunks of rows, matrices of the layer); a program walks down the rows of its
chunk, and what it sums goes into a buffer of one slot per chunk that is added up afterwards: no atomics but those of
counts, so that a run repeats.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false
# (its stubs type Triton's language only in part; a constexpr decides what a branch binds)

from __future__ import annotations

import triton
import triton.language as tl

from snella.delta import GAMMA_MIN

MOST_CHUNKS = 32  # their partial sums are added up within one program's registers
ROWS = 32  # a chunk is a multiple of the largest block along it


def _configs(*blocks: tuple[int, int, int]) -> list[triton.Config]:
    return [triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=1) for m, n, warps in blocks]


# (BLOCK_M, BLOCK_N, warps) that fit into registers at 16 columns a factor, compiled for sm_80 and sm_90. A thread owns
# whole columns, so that coordinates along the rows are uniform loads and column sums mostly stay in the thread.
DISTANCES = _configs((32, 64, 2), (8, 128, 1), (16, 64, 1), (32, 128, 4))
GATES = _configs((16, 64, 2), (8, 64, 1), (4, 128, 1), (16, 128, 4))
FIXED = {"BLOCK_M": 8, "BLOCK_N": 128}  # of the kernels that memory bounds, and that change their input in place

DIGITS, ROUNDS = 256, 4  # of the integers that magnitudes are read as

_DIGITS = tl.constexpr(DIGITS)
_ROUNDS = tl.constexpr(ROUNDS)
_GAMMA_MIN = tl.constexpr(GAMMA_MIN)
_LOWEST = tl.constexpr(-3e38)  # stands for -inf where inf - inf would be NaN
_SMALLEST = tl.constexpr(1.2e-38)  # below it squares flush to zero on the GPU


@triton.jit
def _clamped(gamma):
    """Return gamma, read and kept GAMMA_MIN away from zero, and whether it had to be."""
    value = tl.load(gamma).to(tl.float32)
    negative = value.to(tl.int32, bitcast=True) < 0  # the sign of -0.0 counts, as in torch.copysign
    small = tl.abs(value) < _GAMMA_MIN
    return tl.where(small, tl.where(negative, -_GAMMA_MIN, _GAMMA_MIN), value), small


@triton.jit
def _scalars(alpha, gamma, beta, matrix):
    """Return alpha, the inverse of gamma, whether gamma is clamped, and beta of a matrix."""
    value, small = _clamped(gamma + matrix)
    return tl.load(alpha + matrix).to(tl.float32), 1.0 / value, small, tl.load(beta + matrix).to(tl.float32)


@triton.jit
def _block(rows, cols, m, n):
    """Return the offsets of a block's entries in a contiguous (m, n), and which lie inside."""
    return rows.to(tl.int64)[:, None] * n + cols[None, :], (rows < m)[:, None] & (cols < n)[None, :]


@triton.jit
def _squared_distance(P, Q, p, q, P_count, Q_count, W: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr):
    """Return ‖P[:, p] − Q[:, q]‖² (BLOCK_P, BLOCK_Q) of points stored (W, count).

    By differences, as products would cancel.
    """
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
    """Return D (BLOCK_M, BLOCK_N).

    Here and in `_mixed` each fused multiply-add is spelled out: forward and backward must get the same bits, or an
    entry at the threshold would be kept by only one of them.
    """
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for h in tl.static_range(H):
        distance = tl.sqrt(_squared_distance(B + h * W * m, A + h * W * n, rows, cols, m, n, W, BLOCK_M, BLOCK_N))
        total = total + distance if h % 2 == 0 else total - distance
    return total * scale


@triton.jit
def _mixed(D, inverse, lse, alpha, beta):
    """Return K, the mixture, and its softmax P, given the inverse of gamma and the columns' log-sum-exp."""
    P = tl.exp(tl.fma(D, inverse, -lse[None, :]))
    return tl.fma(P, alpha, D) + beta, P


@triton.jit
def _gate_factor(K, t, GATE: tl.constexpr):
    """Return what the gate multiplies K by, a constant for the gradient."""
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
def _threshold(t, matrix, GATE: tl.constexpr):
    value = 0.0
    if GATE != "none":
        value = tl.load(t + matrix).to(tl.float32)
    return value


@triton.autotune(DISTANCES, key=["m", "n", "H", "W"])
@triton.jit
def distances_kernel(
    A, B, gamma, D, chunk_lse, m, n, chunk, scale,
    H: tl.constexpr, W: tl.constexpr, MIX: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write D and, for `mixk`, each chunk's log-sum-exp of D / gamma down its columns."""
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * chunk
    matrix = tl.program_id(2).to(tl.int64)
    A, B = A + matrix * H * W * n, B + matrix * H * W * m
    D += matrix * m * n
    inverse = 1.0
    if MIX:
        inverse = 1.0 / _clamped(gamma + matrix)[0]
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
        slot = matrix * tl.num_programs(1) + tl.program_id(1)
        tl.store(chunk_lse + slot * n + cols, top + tl.log(total), mask=cols < n)


@triton.jit
def softmax_mix_kernel(
    K, chunk_lse, lse, alpha, gamma, beta, m, n, chunk, chunks,
    CHUNKS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Put K in the place of D."""
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * chunk
    matrix = tl.program_id(2).to(tl.int64)
    K += matrix * m * n
    chunk_lse += matrix * chunks * n
    lse += matrix * n
    slots = tl.arange(0, CHUNKS)
    known = (slots < chunks)[:, None] & (cols < n)[None, :]
    parts = tl.load(chunk_lse + slots[:, None] * n + cols[None, :], mask=known, other=_LOWEST)
    top = tl.max(parts, 0)
    whole = top + tl.log(tl.sum(tl.exp(parts - top[None, :]), 0))
    tl.store(lse + cols, whole, mask=(cols < n) & (first == 0))
    alpha_value, inverse, _, beta_value = _scalars(alpha, gamma, beta, matrix)
    for start in range(first, tl.minimum(first + chunk, m), BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        entries, inside = _block(rows, cols, m, n)
        D = tl.load(K + entries, mask=inside, other=0.0)
        tl.store(K + entries, _mixed(D, inverse, whole, alpha_value, beta_value)[0], mask=inside)


@triton.jit
def add_gated_kernel(K, t, weight, out, size, GATE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Write weight + update, or the update where weight is None, of `size` entries a matrix."""
    matrix = tl.program_id(2).to(tl.int64)
    entries = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = entries < size
    entries += matrix * size
    values = tl.load(K + entries, mask=inside, other=0.0)
    update = values * _gate_factor(values, _threshold(t, matrix, GATE), GATE)
    if weight is not None:
        update = tl.load(weight + entries, mask=inside, other=0.0).to(tl.float32) + update
    tl.store(out + entries, update.to(out.dtype.element_ty), mask=inside)


@triton.autotune(GATES, key=["m", "n", "H", "W"])
@triton.jit
def gate_backward_kernel(
    G, weight, A, B, alpha, gamma, beta, t, lse, adapted, gradient, mixed_sums, unmixed_sums, m, n, chunk, scale,
    H: tl.constexpr, W: tl.constexpr, MIX: tl.constexpr, GATE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write the adapted weight; into `gradient` D, or for `pwl` dL/dD; and a chunk's column sums of dK·P and dK."""
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * chunk
    matrix = tl.program_id(2).to(tl.int64)
    G, gradient = G + matrix * m * n, gradient + matrix * m * n
    A, B = A + matrix * H * W * n, B + matrix * H * W * m
    if weight is not None:
        weight += matrix * m * n
    if adapted is not None:
        adapted += matrix * m * n
    threshold = _threshold(t, matrix, GATE)
    mixed_sum = tl.zeros((BLOCK_N,), tl.float32)
    unmixed_sum = tl.zeros((BLOCK_N,), tl.float32)
    if MIX:
        alpha_value, inverse, _, beta_value = _scalars(alpha, gamma, beta, matrix)
        column_lse = tl.load(lse + matrix * n + cols, mask=cols < n, other=0.0)
    for start in range(first, tl.minimum(first + chunk, m), BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        entries, inside = _block(rows, cols, m, n)
        D = _signed_distance(A, B, rows, cols, m, n, scale, H, W, BLOCK_M, BLOCK_N)
        K = D
        if MIX:
            K, P = _mixed(D, inverse, column_lse, alpha_value, beta_value)
        factor = _gate_factor(K, threshold, GATE)
        dK = tl.load(G + entries, mask=inside, other=0.0).to(tl.float32) * factor
        if MIX:
            dK = tl.where(inside, dK, 0.0)  # beyond the last row P can overflow, and 0 · inf would reach the sums
            mixed_sum += tl.sum(dK * tl.where(inside, P, 0.0), 0)
            unmixed_sum += tl.sum(dK, 0)
            tl.store(gradient + entries, D, mask=inside)
        else:
            tl.store(gradient + entries, dK, mask=inside)
        if adapted is not None:
            update = K * factor
            if weight is not None:
                update = tl.load(weight + entries, mask=inside, other=0.0).to(tl.float32) + update
            tl.store(adapted + entries, update.to(adapted.dtype.element_ty), mask=inside)
    if MIX:
        slot = (matrix * tl.num_programs(1) + tl.program_id(1)) * n + cols
        tl.store(mixed_sums + slot, mixed_sum, mask=cols < n)
        tl.store(unmixed_sums + slot, unmixed_sum, mask=cols < n)


@triton.jit
def softmax_backward_kernel(
    G, gradient, alpha, gamma, beta, t, lse, mixed_sums, gamma_sums, m, n, chunk, chunks,
    GATE: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Put dL/dD in the place of D in `gradient`; the chunk's column sums of dL/dgamma go into `gamma_sums`."""
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(1) * chunk
    matrix = tl.program_id(2).to(tl.int64)
    G, gradient = G + matrix * m * n, gradient + matrix * m * n
    mixed_sums += matrix * chunks * n
    slots = tl.arange(0, CHUNKS)
    known = (slots < chunks)[:, None] & (cols < n)[None, :]
    mean = tl.sum(tl.load(mixed_sums + slots[:, None] * n + cols[None, :], mask=known, other=0.0), 0)
    column_lse = tl.load(lse + matrix * n + cols, mask=cols < n, other=0.0)
    threshold = _threshold(t, matrix, GATE)
    alpha_value, inverse, small, beta_value = _scalars(alpha, gamma, beta, matrix)
    gamma_sum = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(first, tl.minimum(first + chunk, m), BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        entries, inside = _block(rows, cols, m, n)
        D = tl.load(gradient + entries, mask=inside, other=0.0)
        K, P = _mixed(D, inverse, column_lse, alpha_value, beta_value)
        factor = _gate_factor(K, threshold, GATE)
        dK = tl.load(G + entries, mask=inside, other=0.0).to(tl.float32) * factor
        through_softmax = alpha_value * inverse * P * (dK - mean[None, :])
        gamma_sum += tl.sum(tl.where(inside, through_softmax * D, 0.0), 0)
        tl.store(gradient + entries, dK + through_softmax, mask=inside)
    gamma_sum = tl.where(small, 0.0, -gamma_sum * inverse)
    tl.store(gamma_sums + (matrix * chunks + tl.program_id(1)) * n + cols, gamma_sum, mask=cols < n)


@triton.autotune(DISTANCES, key=["P_count", "Q_count", "P_stride", "W"])
@triton.jit
def distance_backward_kernel(
    P, Q, gradient, parts, P_count, Q_count, P_stride, Q_stride, chunk, scale,
    H: tl.constexpr, W: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write the gradients Σ_q ratio · (P − Q) of the points P of a head, from the chunk program_id(1) of Q.

    program_id(2) counts the heads of all matrices. P's points are the columns of a block here, whichever side of the
    matrix they are on: the strides say.
    """
    head = tl.program_id(2).to(tl.int64)
    first = tl.program_id(1) * chunk
    P += head * W * P_count
    Q += head * W * Q_count
    parts += (tl.program_id(1) * tl.num_programs(2) + head) * W * P_count
    gradient += head // H * P_count * Q_count
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    signed_scale = tl.where(head % H % 2 == 0, scale, -scale)
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


@triton.jit
def _prefix(counts, rank, FOUND: tl.constexpr):
    """Return the integer of a 0-based rank from the counts of its `FOUND` highest digits; the others are zeros."""
    prefix = 0
    for found in tl.static_range(FOUND):
        at_most = tl.cumsum(tl.load(counts + found * _DIGITS + tl.arange(0, _DIGITS)), 0)
        digit = tl.sum((at_most <= rank).to(tl.int32), 0)
        prefix += digit << (_ROUNDS - 1 - found) * 8
    return prefix


@triton.jit
def digit_counts_kernel(values, ranks, counts, size, EACH: tl.constexpr, ROUND: tl.constexpr, BLOCK_N: tl.constexpr):
    """Add how many of the magnitudes of a matrix, read as integers, have each digit behind the prefix found so far.

    What lies below the prefix counts to the first digit and what lies above to the last, which leaves the sums of the
    first digits as the ranks need them. program_id(2) counts the ranks of all matrices, EACH for one.
    """
    rank = tl.program_id(2).to(tl.int64)
    values += rank // EACH * size
    counts += rank * _ROUNDS * _DIGITS
    prefix = _prefix(counts, tl.load(ranks + rank), ROUND)
    entries = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = entries < size
    bits = tl.load(values + entries, mask=inside, other=0.0).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    digit = (bits - prefix) >> (_ROUNDS - 1 - ROUND) * 8
    found = tl.histogram(tl.where(inside, tl.minimum(tl.maximum(digit, 0), _DIGITS - 1), _DIGITS - 1), _DIGITS)
    tl.atomic_add(counts + ROUND * _DIGITS + tl.arange(0, _DIGITS), found, mask=found > 0)


@triton.jit
def selected_kernel(ranks, counts, selected):
    """Write the magnitude of each rank."""
    rank = tl.program_id(2).to(tl.int64)
    bits = _prefix(counts + rank * _ROUNDS * _DIGITS, tl.load(ranks + rank), _ROUNDS)
    tl.store(selected + rank, tl.cast(bits, tl.float32, bitcast=True))
