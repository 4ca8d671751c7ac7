"""Which part of a batch, or of a split, is whose; and what a loss over a whole batch needs of the other parts.

    batch of a step   0 1 2 3 4 5 6       process 0: 0 1   process 1: 2 3   process 2: 4 5 6

Each process loads and computes its own rows. A loss is a sum over rows divided by something of the whole batch, so the
losses of the parts add up to the loss of the batch, and their gradients to its gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

PART = "part"  # the key by which a batch that is a part of one says which


@dataclass(frozen=True)
class Share:
    """The part of process `index` of `count`."""

    index: int = 0
    count: int = 1

    def of(self, size: int) -> tuple[int, int]:
        """Return the first of its rows of `size`, and the one behind its last; parts differ by one row at most."""
        return size * self.index // self.count, size * (self.index + 1) // self.count


ALONE = Share()


@dataclass(frozen=True)
class Part:
    """The rows of a step's batch that this process has.

    A process without a row has the batch's first one, which does not count: what it computes is multiplied by 0, so
    that it takes part in all that is exchanged.
    """

    start: int
    stop: int
    whole: int  # rows of the batch
    counts: bool = True
    led: bool = False  # the row before the first one is there too, in front: mixing takes it

    @property
    def size(self) -> int:
        return self.stop - self.start


def part_of(share: Share, whole: int, *, led: bool = False) -> Part:
    """Return the part of a batch of `whole` rows that a process has; `led` as in `Part`."""
    start, stop = share.of(whole)
    return Part(start, stop, whole, led=led) if start < stop else Part(0, 1, whole, counts=False, led=led)


_current: Part | None = None


def current_part() -> Part | None:
    """Return the part that is being computed; None where a batch is whole, as it is in one process."""
    return _current


@contextmanager
def computing(part: Part | None) -> Iterator[None]:
    """Let losses and draws inside be those of a part."""
    global _current
    before, _current = _current, part
    try:
        yield
    finally:
        _current = before


def whole(amount: T) -> T:
    """Return an amount (a number, or a tensor without gradient) summed over the parts of a batch."""
    part = current_part()
    if part is None:
        return amount
    value: Any = amount
    summed = value.detach().clone() if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)
    if not part.counts:
        summed.zero_()
    dist.all_reduce(summed)
    return summed if isinstance(amount, Tensor) else summed.item()  # pyright: ignore[reportReturnType]


def part_of_mean(mean: Tensor, rows: int) -> Tensor:
    """Return what a mean over the `rows` of a part is of the mean over the batch."""
    return mean if current_part() is None else mean * (rows / whole(rows))


class _SummedOverParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        summed = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        g = g.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(g)
        return g


def summed_over_parts(x: Tensor) -> Tensor:
    """Return the sum of each part's x, through which gradients flow: each part's loss tells all of them."""
    part = current_part()
    if part is None:
        return x
    return _SummedOverParts.apply(x if part.counts else x * 0)  # pyright: ignore[reportReturnType]


def own_rows(rows: T) -> T:
    """Return the rows of a part without the one that leads it."""
    part = current_part()
    return rows[1:] if part is not None and part.led else rows  # pyright: ignore[reportIndexIssue]


def equal_share(loss: Tensor) -> Tensor:
    """Return this process's part of a loss that each of them has computed for the whole batch."""
    return loss if current_part() is None else loss / dist.get_world_size()


def trained_norms(model: nn.Module) -> list[nn.Module]:
    """Return the batch norms that would be in training mode: their statistics are of the batch."""
    norm = nn.modules.batchnorm._BatchNorm
    return [m for m in model.modules() if isinstance(m, norm) and any(p.requires_grad for p in m.parameters())]
