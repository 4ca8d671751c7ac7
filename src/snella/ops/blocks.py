"""The update and its backward in tensor operations, over blocks of columns that stay in the cache.

For every device and floating dtype; nothing of the matrix's size is made besides the results.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from snella.delta import Gate, clamped_gamma, gate_factor, gated

Scalars = tuple[Tensor, Tensor, Tensor]  # alpha, gamma and beta of `mixk`, each 0-d

# Entries of a block: a few blocks fit into a core's cache, or fill a GPU.
_BLOCK = {"cpu": 1 << 16}
_BLOCK_ELSEWHERE = 1 << 24


def _blocks_of(count: int, width: int, device: torch.device) -> Iterator[slice]:
    """Yield ranges that cover `count` columns (or rows) of `width` entries, a block each."""
    step = max(_BLOCK.get(device.type, _BLOCK_ELSEWHERE) // width, 1)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _distances(A: Tensor, B: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the distances (H, m, n) and D (m, n)."""
    distance = torch.cdist(B, A)
    D = distance[0] * scale
    for h in range(1, len(distance)):
        D.add_(distance[h], alpha=-scale if h % 2 else scale)
    return distance, D


def kernel_and_stats(A: Tensor, B: Tensor, scalars: Scalars | None, K: Tensor, *, scale: float) -> Tensor | None:
    """Set K (m, n) to the kernel matrix, and return what its backward needs besides the factors.

    Args:
        A, B: factors (H, n, r/H) and (H, m, r/H), in the dtype to compute in.
        scalars: alpha, gamma and beta, 0-d, of `mixk`; None for `pwl`.

    Returns:
        For `mixk` the log-sum-exp (n) of D / gamma over the out axis; None for `pwl`.
    """
    n, m = A.shape[1], B.shape[1]
    lse = None if scalars is None else A.new_empty(n)
    for columns in _blocks_of(n, m, A.device):
        _, D = _distances(A[:, columns], B, scale)
        if lse is not None and scalars is not None:
            alpha, gamma, beta = scalars
            logits = D / clamped_gamma(gamma)
            lse[columns] = torch.logsumexp(logits, 0)
            D = D + alpha * (logits - lse[columns]).exp() + beta
        K[:, columns] = D
    return lse


def add_gated(weight: Tensor | None, K: Tensor, t: Tensor | None, out: Tensor, *, gate: Gate) -> None:
    """Set out (m, n) to weight + update, or to the update where weight is None. out may be K."""
    m, n = K.shape
    for rows in _blocks_of(m, n, K.device):
        update = gated(K[rows], t, gate)
        out[rows] = update if weight is None else weight[rows].to(update.dtype) + update


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
    """Return the gradients of factors and scalars, given that of the adapted weight.

    Args:
        G: gradient (m, n) of weight + update.
        weight: as in `add_gated`.
        A, B, scalars, lse: as in `kernel_and_stats`.
        t: threshold (0-d); None for gate `none`.
        adapted: where to put weight + update (m, n) again, which the same pass makes; None if it is not needed.

    Returns:
        Gradients of A, of B and of the three scalars (None for `pwl`).
    """
    n, m = A.shape[1], B.shape[1]
    grad_A, grad_B = torch.empty_like(A), torch.zeros_like(B)
    sums = A.new_zeros(3)
    for columns in _blocks_of(n, m, A.device):
        distance, D = _distances(A[:, columns], B, scale)
        K, P = D, None
        if lse is not None and scalars is not None:
            alpha, gamma, beta = scalars
            P = (D / clamped_gamma(gamma) - lse[columns]).exp()
            K = D + alpha * P + beta
        factor = gate_factor(K, t, gate)
        if adapted is not None:
            update = K * factor
            adapted[:, columns] = update if weight is None else weight[:, columns].to(update.dtype) + update
        dK = G[:, columns].to(A.dtype) * factor
        if P is None or scalars is None:
            dD = dK
        else:
            dD, part = _softmax_backward(dK, D, P, scalars)
            sums += part
        _distance_backward(dD, distance, A[:, columns], B, scale, grad_A[:, columns], grad_B)
    if scalars is None:
        return grad_A, grad_B, None
    inside = clamped_gamma(scalars[1]) == scalars[1]
    return grad_A, grad_B, (sums[0], torch.where(inside, sums[1], 0), sums[2])


def _softmax_backward(dK: Tensor, D: Tensor, P: Tensor, scalars: Scalars) -> tuple[Tensor, Tensor]:
    """Return the gradient of D (m, n) and those of alpha, gamma and beta (3,), given that of K = D + alpha P + beta."""
    alpha, gamma = scalars[0], clamped_gamma(scalars[1])
    c = (P * dK).sum(0)
    grad_logits = alpha * P * (dK - c)
    grad_scalars = torch.stack([c.sum(), -(grad_logits * D).sum() / gamma**2, dK.sum()])
    return dK + grad_logits / gamma, grad_scalars


def _distance_backward(
    dD: Tensor, distance: Tensor, A: Tensor, B: Tensor, scale: float, grad_A: Tensor, grad_B: Tensor
) -> None:
    """Set grad_A to, and add to grad_B, what the gradient of D (m, n) gives; points that coincide pull nowhere."""
    for h in range(len(A)):
        ratio = dD * (-scale if h % 2 else scale) / distance[h]
        ratio.masked_fill_(distance[h] == 0, 0)
        grad_A[h] = A[h] * ratio.sum(0)[:, None] - ratio.mT @ B[h]
        grad_B[h] += B[h] * ratio.sum(1)[:, None] - ratio @ A[h]
