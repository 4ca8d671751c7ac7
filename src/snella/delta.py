"""The weight update in plain PyTorch: the definition that everything else is tested against.

    A (H, n, r/H) ─┐
                   ├─ distances ─ kernel matrix K (m, n) ─ threshold t from the budget ─ gate ─ delta (m, n)
    B (H, m, r/H) ─┘

    D[j,i] = scale · Σ_h (-1)^h ‖A[h,i] − B[h,j]‖₂                (`pwl`, SNELL, arXiv 2411.01800)
    K      = D + alpha · softmax_j(D / gamma) + beta              (`mixk`, SNELLA, arXiv 2510.24037)
    delta  = gate(K, t),   y = x (W + delta)ᵀ + bias

n is the in axis, m the out axis; every matrix here is (m, n), as a weight is. A sum of two low-rank terms under a
norm has a high rank, and only the entries that win the budget are kept.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Kernel = Literal["mixk", "pwl"]
Gate = Literal["published", "soft", "hard", "none"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
GATES: tuple[Gate, ...] = get_args(Gate)

GAMMA_MIN = 1e-3  # gamma divides: it is kept this far from zero, sign kept


def kernel_matrix(
    A: Tensor,
    B: Tensor,
    alpha: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    kernel: Kernel = "mixk",
    scale: float | Tensor = 0.1,
) -> Tensor:
    """Return the kernel matrix K (m, n) of factors A (H, n, r/H) and B (H, m, r/H), in at least fp32.

    alpha, gamma and beta hold one number each and are None for `pwl`; scale is the constant before the distances.
    Several matrices at once have a first axis before those of A, B and K, one number each in the scalars, and a scale
    for all or one each.

    Raises:
        ValueError: a scalar missing for `mixk`.
    """
    dtype = torch.promote_types(A.dtype, torch.float32)
    with torch.autocast(A.device.type, enabled=False):
        # cdist's own choice of form (products above 25 points) is what the published values were made with,
        # and its gradient is finite, zero, where two points coincide.
        distance = torch.cdist(B.to(dtype), A.to(dtype))  # (H, m, n)
        D = scale * (distance[..., 0::2, :, :].sum(-3) - distance[..., 1::2, :, :].sum(-3))
        if kernel == "pwl":
            return D
        if alpha is None or gamma is None or beta is None:
            raise ValueError("kernel 'mixk' needs alpha, gamma and beta; only 'pwl' goes without")
        one_each = (-1, 1, 1) if A.ndim == 4 else ()
        alpha, gamma, beta = (scalar.to(dtype).reshape(one_each) for scalar in (alpha, gamma, beta))
        return D + alpha * torch.softmax(D / clamped_gamma(gamma), dim=-2) + beta


def clamped_gamma(gamma: Tensor) -> Tensor:
    """Return gamma, kept GAMMA_MIN away from zero."""
    return torch.where(gamma.abs() < GAMMA_MIN, torch.copysign(torch.full_like(gamma, GAMMA_MIN), gamma), gamma)


def kept_count(sparsity: float, numel: int) -> int:
    """Return how many of `numel` entries a sparsity in [0, 1] keeps: N - 1 - floor(s (N - 1)), in float64."""
    return numel - 1 - math.floor(sparsity * (numel - 1))


def threshold(magnitude: Tensor, kept: int) -> Tensor:
    """Return the magnitude (0-d) above which, strictly, `kept` entries lie: the (N - kept)-th smallest.

    kept = N keeps N - 1, as published; kept = 0 keeps nothing; ties at the threshold keep fewer.
    """
    return torch.kthvalue(magnitude.flatten(), max(magnitude.numel() - kept, 1)).values


def quantile(magnitude: Tensor, sparsity: float) -> Tensor:
    """Return the linearly interpolated `sparsity`-quantile (0-d) of any number of elements."""
    values = magnitude.flatten()
    position = sparsity * (values.numel() - 1)
    low = min(math.floor(position), values.numel() - 1)
    below = torch.kthvalue(values, low + 1).values
    if low == position:
        return below
    return torch.lerp(below, torch.kthvalue(values, low + 2).values, position - low)


def gate_factor(K: Tensor, t: Tensor | None, gate: Gate) -> Tensor:
    """Return what the gate multiplies the kernel matrix K by, given the threshold t (0-d; None for gate `none`).

    It is a constant for the gradient: d delta / dK is this factor (`published` as the published code, `soft` as
    eq. 5 of the SNELL paper).
    """
    if gate == "none":
        return K.new_ones(())
    assert t is not None, f"gate {gate!r} needs a threshold"
    magnitude = K.detach().abs()
    if gate == "soft":
        return (magnitude - t).clamp_min(0)
    if gate == "hard":
        return (magnitude > t).to(K.dtype)
    return torch.where(magnitude > t, magnitude, 0)


def gated(K: Tensor, t: Tensor | None, gate: Gate) -> Tensor:
    """Return the update (m, n) that gate and threshold make of the kernel matrix; see `gate_factor`."""
    return K * gate_factor(K, t, gate)


def delta_weight(
    A: Tensor,
    B: Tensor,
    alpha: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    sparsity: float,
    kernel: Kernel = "mixk",
    gate: Gate = "published",
    scale: float = 0.1,
) -> Tensor:
    """Return the update of one weight matrix, differentiable in all tensors.

    Args:
        A, B: factors of shapes (H, n, r/H) and (H, m, r/H), for an n-in, m-out weight.
        alpha, gamma, beta: the scalars of `mixk`, 0-d or of shape (1,); None for `pwl`.
        sparsity: share of the entries that are zeroed, in [0, 1]; gate `none` does not look at it.
        kernel: `mixk` (SNELLA) or `pwl` (SNELL).
        gate: `published`, `soft`, `hard` or `none`.
        scale: the constant c before the distances, 0.1 as published; a layer makes its own of `SnellaConfig.scale`.

    Returns:
        delta (m, n), in fp32, or float64 where A is.

    Raises:
        ValueError: unknown kernel or gate, sparsity outside [0, 1], or a scalar missing.

    Example:
        >>> A, B = torch.randn(2, 24, 4), torch.randn(2, 40, 4)
        >>> delta_weight(A, B, sparsity=0.5, kernel="pwl").shape
        torch.Size([40, 24])
    """
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}; choose from {', '.join(KERNELS)}")
    if gate not in GATES:
        raise ValueError(f"unknown gate {gate!r}; choose from {', '.join(GATES)}")
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity {sparsity} is outside [0, 1]")
    K = kernel_matrix(A, B, alpha, gamma, beta, kernel=kernel, scale=scale)
    if gate == "none":
        return K
    magnitude = K.detach().abs()
    t = quantile(magnitude, sparsity) if gate == "soft" else threshold(magnitude, kept_count(sparsity, K.numel()))
    return gated(K, t, gate)
