"""How far a training may take an update: a step's change is kept within its share of the whole way.

    way of step t of T    max_travel · (1 + cos(π (t − ½) / T)) / T, of the frozen weight's rms: max_travel in all
    change                of D = update(after) − update(before): the larger of rms(D) and rms(D u), u = (1, ..., 1) / √n
    factors               before + min(1, way / change) · (after − before)

The gates that square make an update that grows with the square of the steps, so that a learning rate at which it learns
in few steps runs away in many, and one that holds learns nothing at first. Bounded in its own size an update grows in
proportion to the steps, at any rate that is high enough.

An update of distances moves whole rows one way, which a low-rank product seldom does: all inputs behind a ReLU are
positive, so their sum moves the mean of an output √n times as far as an update of that size at random would. A few
dozen steps of it leave most ReLUs without an input above 0, and nothing is learnt any more. Hence D u.

LARS (arXiv 1708.03888) and LAMB (arXiv 1904.00962) bound a step in proportion to what it changes. Here that is the
weight that the factors make, not the factors.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from snella.delta import Kernel, kernel_matrix

LEAST_COLUMNS, PARTS = 32, 16  # a sample has one of so many columns, but as many as that


@dataclass(frozen=True)
class Adapted:
    """One layer's S updates.

    Args:
        parameters: A (S, H, n, w), B (S, H, m, w), and for `mixk` alpha, gamma and beta (S,).
        kernel: the kernel.
        squares: whether the gate multiplies an entry by its size.
        scale: the constant before the distances.
        unit: what the scalars are multiplied by.
        size: rms of the frozen weight.
    """

    parameters: tuple[Tensor, ...]
    kernel: Kernel
    squares: bool
    scale: float
    unit: float
    size: float


def way(step: int, total_step: int) -> float:
    """Return the share of the whole way that step `step`, from 1, may go; the shares of all steps add up to 1."""
    return (1 + math.cos(math.pi * (min(step, total_step) - 0.5) / total_step)) / total_step


class Travel:
    """Keeps the updates of an adapter within what each step may change; call `limit` after the optimiser's step."""

    def __init__(self) -> None:
        self._before: list[list[Tensor]] | None = None

    @torch.no_grad()
    def start(self, layers: Sequence[Adapted]) -> None:
        """Take the parameters as they are for those before the next step."""
        self._before = [[parameter.detach().clone() for parameter in layer.parameters] for layer in layers]

    @torch.no_grad()
    def limit(self, layers: Sequence[Adapted], most: float) -> None:
        """Shorten the step that has just been done, layer by layer, to a change of `most` in units of the weights.

        The first call of a training that had no `start` has nothing to compare, and leaves the step as it is.
        """
        if self._before is None:
            return self.start(layers)
        for layer, before, change in zip(layers, self._before, changes(layers, self._before), strict=True):
            share = (most * layer.size / change).clamp(max=1)  # no change: infinite, and 1
            for parameter, old in zip(map(_local, layer.parameters), map(_local, before), strict=True):
                parameter.copy_(torch.lerp(old, parameter, share.to(parameter.device, parameter.dtype)))
                old.copy_(parameter)
        return None


def changes(layers: Sequence[Adapted], before: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return the change (0-d) of each layer's updates before entries are selected, by a sample of their columns.

    Layers of one shape are measured at once: on a GPU a layer by itself is too little work for its launches.
    """
    alike = defaultdict[tuple[object, ...], list[int]](list)
    for i, layer in enumerate(layers):
        A, B, *_ = layer.parameters
        alike[A.shape, B.shape, A.device, A.dtype, layer.kernel, layer.squares, layer.unit].append(i)
    found: dict[int, Tensor] = {}
    for group in alike.values():
        of_group = [layers[i] for i in group]
        now = _updates(of_group, [layer.parameters for layer in of_group])
        old = _updates(of_group, [before[i] for i in group])
        found |= zip(group, _sizes(now - old, of_group[0].parameters[0].shape[-2]), strict=True)
    return [found[i] for i in range(len(layers))]


def _sizes(D: Tensor, columns: int) -> Tensor:
    """Return the size (layers,) of changes (layers, rows, sample) of matrices of so many columns.

    The mean of a row's sample is further from 0 than that of all its columns, by a share of its variance, which is
    taken off: D u is estimated without a bias.
    """
    sample = D.shape[-1]
    spread = D.var(-1) * (1 / sample - 1 / columns) if sample < columns else 0
    along = columns * (D.mean(-1).square() - spread).mean(-1)
    return torch.maximum(D.square().mean((-2, -1)), along).sqrt()


def _updates(layers: Sequence[Adapted], parameters: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return some columns of the updates of layers of one shape, (layers, rows, columns)."""
    A, B, *scalars = (torch.cat([_whole(one) for one in parts]) for parts in zip(*parameters, strict=True))
    first = layers[0]
    every = max(1, min(PARTS, A.shape[-2] // LEAST_COLUMNS))
    scale = A.new_tensor([layer.scale for layer in layers]).repeat_interleave(len(A) // len(layers)).reshape(-1, 1, 1)
    own = [first.unit * scalar for scalar in scalars]
    K = kernel_matrix(A[:, :, ::every], B, *own, kernel=first.kernel, scale=scale)
    return (K * K.abs() if first.squares else K).reshape(len(layers), -1, K.shape[-1])


def _whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
