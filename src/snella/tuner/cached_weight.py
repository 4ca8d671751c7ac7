"""The adapted weight that a layer keeps in evaluation, and the rule by which it is still right.

It is kept only where every change to what it was made of shows. A tensor's memory, version, dtype and device show
most of them; fused optimisers and writes to .data change a tensor that trains without a new version, so that its
values are compared too. Inference tensors have no version, and a base weight that trains is too large to compare:
with those nothing is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snella.ops import is_packed


@dataclass(frozen=True)
class CachedWeight:
    """An adapted weight and what it was made of: identities of tensors, and values of those that train."""

    weight: Tensor
    key: tuple
    values: tuple[Tensor, ...]

    def is_current(self, base: Tensor, sources: Sequence[Tensor], scales: Sequence[float]) -> bool:
        """Return whether these tensors and scales would make the same weight again."""
        values = _compared(sources)
        same = self.key == _key(base, sources, scales, values)
        return same and all(map(torch.equal, self.values, values))


def is_cacheable(base: Tensor, sources: Sequence[Tensor]) -> bool:
    """Return whether a change to the base weight or to an update's sources could not pass unseen."""
    visible = not base.requires_grad and not any(tensor.is_inference() for tensor in (base, *sources))
    return visible and not is_packed(base)  # which is there to save memory, and of whose parts nothing is known


def keep(weight: Tensor, base: Tensor, sources: Sequence[Tensor], scales: Sequence[float]) -> CachedWeight:
    """Return the adapted weight with a note of what it was made of.

    Args:
        weight: (out, ...), as made of the other three.
        base: the layer's frozen weight, of the same shape.
        sources: factors, scalars and budgets of the adapters in force.
        scales: those adapters' scales.
    """
    values = _compared(sources)
    copies = tuple(tensor.detach().clone() for tensor in values)
    return CachedWeight(weight, _key(base, sources, scales, values), copies)


def _compared(sources: Sequence[Tensor]) -> Sequence[Tensor]:
    return sources if any(tensor.requires_grad for tensor in sources) else ()


def _key(base: Tensor, sources: Sequence[Tensor], scales: Sequence[float], values: Sequence[Tensor]) -> tuple:
    states = ((tensor.data_ptr(), tensor._version, tensor.dtype, tensor.device) for tensor in (base, *sources))
    return (*states, *scales, len(values))
