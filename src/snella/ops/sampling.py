"""The weight gradient of a linear product from a part of its rows: unbiased, and a fraction of the work.

G = gᵀ x sums over rows (tokens) t. Of k rows, the half with the largest |g_t| |x_t| count as they are; the others are
drawn from the rest in proportion to it, each divided by how often it is expected, so that the mean over draws is G
(column-row sampling with the winners taken for sure: Liu et al. 2023, "Winner-take-all column row sampling"). The draw
is systematic: one random number places k/2 equal steps along the rest's running sum. Rows of zeros are never taken;
where at most k are left, all of those count, and the sum is exact.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Sample(NamedTuple):
    """How the rows of one call are chosen."""

    share: float  # of the rows, above 0 and below 1
    draw: Tensor  # the random number (0-d, fp32), at least 0 and below 1


def draw_sample(share: float, device: torch.device) -> Sample:
    """Draw the random number of a call from torch's own generator of the device, as dropout's masks are."""
    return Sample(share, torch.rand((), device=device))


def choose_rows(g: Tensor, x: Tensor, sample: Sample) -> tuple[Tensor, Tensor]:
    """Return which rows of g (T, out) and x (T, in) to take, and what to multiply each by: (k,) int64 and fp32.

    Of k = ceil(share T) rows, some may be of weight 0; on the CPU those are left out.
    """
    scores = _norms(g) * _norms(x)
    count = math.ceil(sample.share * len(scores))
    winners = count // 2
    ordered, order = scores.sort(descending=True, stable=True)
    rest = ordered[winners:]
    sums = rest.cumsum(0, dtype=torch.float64)
    steps = count - winners
    places = (torch.arange(steps, device=g.device) + sample.draw) * (sums[-1] / steps)
    drawn = torch.searchsorted(sums, places, right=True).clamp_(max=len(rest) - 1)
    expected = rest[drawn] * (steps / sums[-1])
    few = torch.count_nonzero(ordered) <= count  # then all that are not zero fit
    straight = torch.arange(steps, device=g.device)
    ones = ordered.new_ones(winners)
    chosen = order[torch.cat([torch.arange(winners, device=g.device), winners + torch.where(few, straight, drawn)])]
    weights = torch.cat([ones, torch.where(few, 1.0, expected.reciprocal().nan_to_num_(0, 0, 0)).to(ones.dtype)])
    if g.device.type == "cpu" and few:
        there = int(torch.count_nonzero(ordered))
        return chosen[:there], weights[:there]
    return chosen, weights


def _norms(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.promote_types(rows.dtype, torch.float32))


def sampled_product(g: Tensor, x: Tensor, sample: Sample) -> Tensor:
    """Return an estimate of gᵀ x (out, in) from a part of the rows of g (T, out) and x (T, in); its mean is gᵀ x."""
    if not len(g):  # drop-path may leave none
        return g.mT @ x
    chosen, weights = choose_rows(g, x, sample)
    return (g[chosen] * weights[:, None].to(g.dtype)).mT @ x[chosen]
