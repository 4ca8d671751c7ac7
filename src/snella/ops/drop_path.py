"""Drop-path of the update: samples that do without it while training, drawn for each of the S matrices by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from snella.distributed.draws import for_each_sample
from snella.ops.product import ProductCall
from snella.ops.update import Factors, Stats, build, build_backward


class DropPath(NamedTuple):
    """Samples (indices into the batch) with and without the update, for each of the S matrices."""

    keep: float  # the chance of a sample to have it, by which its update is divided
    kept: tuple[Tensor, ...]
    dropped: tuple[Tensor, ...]


def draw_drop_path(rate: float, splits: int, samples: int, device: torch.device) -> DropPath:
    """Draw which samples do without the update; on the CPU, as sizes depend on it and a GPU would be waited for."""
    mask = for_each_sample(lambda count: torch.rand(splits, count), samples) < 1 - rate
    return DropPath(
        1 - rate,
        tuple(row.nonzero()[:, 0].to(device, non_blocking=True) for row in mask),
        tuple((~row).nonzero()[:, 0].to(device, non_blocking=True) for row in mask),
    )


@dataclass(frozen=True)
class DropPathCall(ProductCall):
    """A `ProductCall` in which kept samples see W + update / keep, and dropped ones W."""

    drop: DropPath

    def build(self, weight: Tensor | None, factors: Factors, kept: Tensor) -> tuple[Tensor, Stats]:
        update, stats = build(None, factors, kept, self.spec, torch.promote_types(factors.A.dtype, torch.float32))
        return self._add_weight(update.div_(self.drop.keep), weight), stats

    def build_backward(
        self, G: Tensor, weight: Tensor | None, factors: Factors, stats: Stats, needed: bool
    ) -> tuple[Tensor | None, Factors]:
        dtype = torch.promote_types(factors.A.dtype, torch.float32)
        G = G.to(dtype).div_(self.drop.keep)
        update, grad_factors = build_backward(G, None, factors, stats, self.spec, dtype if needed else None)
        return None if update is None else self._add_weight(update.div_(self.drop.keep), weight), grad_factors

    def forward(self, x: Tensor, adapted: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        splits = len(self.drop.kept)
        biases = [None] * splits if bias is None else bias.to(self.dtype).chunk(splits)
        parts = []
        for (with_update, base, kept, dropped), b in zip(self._matrices(adapted, weight), biases, strict=True):
            y_kept = self.product.forward(x[kept], with_update, b)
            part = y_kept.new_zeros(len(x), *y_kept.shape[1:])
            part[kept] = y_kept
            if base is not None:
                part[dropped] = self.product.forward(x[dropped], base, b)
            parts.append(part)
        return torch.cat(parts, dim=self.channels)

    def grad_adapted(self, g: Tensor, x: Tensor, live: Sequence[bool] | None) -> Tensor:
        parts = zip(self._parts(g, live or [True] * len(self.drop.kept)), self.drop.kept, strict=True)
        return self._stacked(
            [self._grad_sampled(part[kept], x[kept]) if there else None for (part, there), kept in parts]
        )

    def grad_weight(self, g: Tensor, x: Tensor, G: Tensor) -> Tensor:
        return self.product.grad_weight(g, x)  # which dropped samples see, too

    def grad_input(self, g: Tensor, x: Tensor, adapted: Tensor, weight: Tensor | None) -> Tensor:
        parts = g.chunk(len(self.drop.kept), dim=self.channels)
        grad_x = torch.zeros_like(x)
        for (with_update, base, kept, dropped), part in zip(self._matrices(adapted, weight), parts, strict=True):
            grad_x.index_add_(0, kept, self.product.grad_input(part[kept], x[kept], with_update))
            if base is not None:
                grad_x.index_add_(0, dropped, self.product.grad_input(part[dropped], x[dropped], base))
        return grad_x

    def _matrices(
        self, adapted: Tensor, weight: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor | None, Tensor, Tensor]]:
        """Yield each of the S matrices with the update and without, and the samples that see the one and the other."""
        splits = len(self.drop.kept)
        frozen = [None] * splits if weight is None else weight.detach().to(self.dtype).flatten(1).chunk(splits)
        return zip(adapted.chunk(splits), frozen, self.drop.kept, self.drop.dropped, strict=True)

    def _add_weight(self, update: Tensor, weight: Tensor | None) -> Tensor:
        if weight is not None:
            update.add_(weight.detach().flatten(1))
        return update.to(self.dtype)
