"""Selection of a budget's threshold: exact, without a sort, and one operator that torch.compile does not look into.

On the CPU a sample brackets the wanted rank, and only the magnitudes inside the bracket are put in order. Elsewhere the
bits of the answer are found digit by digit from histograms, and the host never waits for a value: on GPUs by Triton's
kernels, of all matrices at once, and where there are none by tensor operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from snella.ops import native

SAMPLE = 1 << 14  # with 2^15 the quickest of 2^12 … 2^16 for 0.6 to 4 million entries
CPU_PIECE = 1 << 16  # entries looked at together: the masks stay in the cache
DEVICE_PIECE = 1 << 22  # entries with 16 to 24 bytes of temporaries each
DIGIT_BITS = 8
DIGITS = 1 << DIGIT_BITS
LANES = 1024  # histograms side by side: atomic additions to one and the same count would wait for each other
INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}

# entries (S, N), 0-based ranks (S, k) among each row's magnitudes -> the magnitudes (S, k) of these ranks
Select = Callable[[Tensor, Tensor], Tensor]


@lru_cache(maxsize=1)
def triton_update() -> ModuleType | None:
    """Return the module of Triton's kernels; None where this platform has no Triton."""
    try:
        from snella.ops import triton_update
    except ImportError:
        return None
    return triton_update


@torch.library.custom_op("snella::budget_threshold", mutates_args=())
def budget_threshold(K: Tensor, kept: Tensor, interpolated: bool) -> Tensor:
    """Return the threshold that a budget `kept` (int64) sets on the magnitudes of entries of any shape.

    `kept` is 0-d, or (S,), the budgets of S matrices K (S, ...); the result has its shape. A threshold is equal to
    `delta.threshold` of |K|, or where `interpolated` (gate `soft`) to `delta.quantile` at 1 - kept / N.
    K is float32 or float64; it is copied where it is not contiguous.
    """
    return threshold_by(K, kept, interpolated, _select_on(K))


@budget_threshold.register_fake
def _(K: Tensor, kept: Tensor, interpolated: bool) -> Tensor:
    return K.new_empty(kept.shape)


def _select_on(K: Tensor) -> Select:
    if K.device.type == "cpu":
        return select_by_sample
    kernels = triton_update() if K.is_cuda and K.dtype == torch.float32 else None
    return select_by_digits if kernels is None else kernels.select_by_counts


def threshold_by(K: Tensor, kept: Tensor, interpolated: bool, select: Select) -> Tensor:
    """Return the thresholds of `budget_threshold`, their order statistics by `select`."""
    values, budgets = K.reshape(kept.numel(), -1), kept.reshape(-1, 1)
    size = values.shape[1]
    if not interpolated:
        return select(values, (size - budgets).clamp_min(1) - 1).view(kept.shape)
    # A tensor as divisor: CUDA divides by a Python number through its reciprocal, which can be one bit off.
    budgets = budgets.cpu() if budgets.device.type == "mps" else budgets  # Apple's GPUs have no float64
    total = torch.full_like(budgets, size, dtype=torch.float64)
    position = (1 - budgets / total) * (size - 1)
    low = position.floor().clamp_max(size - 1)
    ordered = select(values, torch.cat((low, (low + 1).clamp_max(size - 1)), 1).long().to(values.device))
    fraction = (position - low).to(values.dtype).to(values.device)
    return torch.lerp(ordered[:, :1], ordered[:, 1:], fraction).view(kept.shape)


def select_by_sample(values: Tensor, ranks: Tensor) -> Tensor:
    """Select on the CPU: put in order only what lies between two values that enclose the ranks, most likely."""
    return torch.stack([_selected_by_sample(row, wanted) for row, wanted in zip(values, ranks.numpy(), strict=True)])


def _selected_by_sample(values: Tensor, wanted: np.ndarray) -> Tensor:
    entries = values.numpy()
    low, high = _bracket(entries, wanted[0], wanted[-1])
    counted = native.magnitudes_between(values, low, high)
    below, inside = _magnitudes_between(entries, low, high) if counted is None else counted
    if wanted[0] < below or wanted[-1] >= below + inside.size:  # ties, or a sample that is not like the whole
        below, inside = 0, np.abs(entries)
    return torch.from_numpy(np.partition(inside, wanted - below)[wanted - below])


def _bracket(entries: np.ndarray, first: int, last: int) -> tuple[float, float]:
    """Return two values that enclose the ranks `first` to `last`, four standard errors of the sample away from them."""
    size = entries.size
    stride = -(-size // SAMPLE)
    while math.gcd(stride, size) > 1:  # or some of a matrix's columns would never be looked at
        stride += 1
    sample = np.sort(np.abs(entries[::stride]))
    share = last / size
    margin = 1 + math.ceil(4 * math.sqrt(sample.size * share * (1 - share)))
    low, high = first * sample.size // size - margin, last * sample.size // size + margin
    return (sample[low] if low >= 0 else -1.0), (sample[high] if high < sample.size else math.inf)


def _magnitudes_between(entries: np.ndarray, low: float, high: float) -> tuple[int, np.ndarray]:
    """Return how many magnitudes are at most `low`, and those that lie strictly between `low` and `high`."""
    at_most, under = np.empty((2, CPU_PIECE), bool)
    magnitude = np.empty(CPU_PIECE, entries.dtype)
    below, inside = 0, []
    for start in range(0, entries.size, CPU_PIECE):
        size = min(entries.size - start, CPU_PIECE)
        piece = np.abs(entries[start : start + size], out=magnitude[:size])
        at_most, under = at_most[:size], under[:size]
        np.less_equal(piece, low, out=at_most)
        np.less(piece, high, out=under)
        below += np.count_nonzero(at_most)
        np.greater(under, at_most, out=under)  # not their difference: `low` and `high` may be equal, or NaN
        inside.append(piece.compress(under))
    return below, np.concatenate(inside)


def select_by_digits(values: Tensor, ranks: Tensor) -> Tensor:
    """Select on any device, in a fixed number of steps and without a wait for a value of the device.

    Non-negative floating-point numbers are in the order of their bits, read as integers; the sign bit is left out.
    """
    bits = values.view(INTEGERS[values.dtype])
    selected = [_integer_of_rank(row, rank) for row, wanted in zip(bits, ranks, strict=True) for rank in wanted]
    return torch.stack(selected).to(bits.dtype).view(values.dtype).view(ranks.shape)


def _integer_of_rank(bits: Tensor, rank: Tensor) -> Tensor:
    """Return the integer (0-d, int64) of a 0-based rank among (N,) without their sign bit, its highest digit first."""
    prefix = torch.zeros_like(rank)  # the digits found so far, and zeros
    for shift in reversed(range(0, 8 * bits.element_size(), DIGIT_BITS)):
        at_most = _histogram(bits, prefix, shift).cumsum(0)
        prefix = prefix + ((at_most <= rank).sum() << shift)
    return prefix


def _histogram(bits: Tensor, prefix: Tensor, shift: int) -> Tensor:
    """Return how many of `bits` (N,) have each digit behind `prefix`: (DIGITS,).

    What lies below the prefix counts to the first digit and what lies above to the last, which leaves the sums of
    the first digits as the ranks need them.
    """
    counts = torch.zeros(LANES, DIGITS, dtype=torch.int32, device=bits.device)
    one = torch.ones((), dtype=torch.int32, device=bits.device)
    starts = torch.arange(0, LANES * DIGITS, DIGITS, device=bits.device)
    without_sign = torch.iinfo(bits.dtype).max
    whole = bits.numel() // LANES * LANES
    for part in (*bits[:whole].view(-1, LANES).split(DEVICE_PIECE // LANES), bits[whole:]):
        digit = (((part & without_sign) - prefix) >> shift).clamp_(0, DIGITS - 1)
        index = (digit + starts[: part.shape[-1]]).flatten()
        counts.view(-1).scatter_add_(0, index, one.expand_as(index))
    return counts.sum(0)
