"""Samples that do without the update while training."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DropPath(NamedTuple):
    """Samples (indices into the batch) with and without the update, for each of the S matrices."""

    keep: float  # the chance of a sample to have it, by which its update is divided
    kept: tuple[Tensor, ...]
    dropped: tuple[Tensor, ...]


def draw_drop_path(rate: float, splits: int, samples: int, device: torch.device) -> DropPath:
    """Draw which samples do without the update; on the CPU, as sizes depend on it and a GPU would be waited for."""
    mask = torch.rand(splits, samples) < 1 - rate
    return DropPath(
        1 - rate,
        tuple(row.nonzero()[:, 0].to(device, non_blocking=True) for row in mask),
        tuple((~row).nonzero()[:, 0].to(device, non_blocking=True) for row in mask),
    )
