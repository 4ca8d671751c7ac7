"""The competition for the budget: schedule, importance and shares (SNELLA, arXiv 2510.24037, section 3.3).

Weights compete across matrices by importance, here, and inside each matrix by magnitude (the threshold of
`snella.delta`). A budget is the number of entries of a matrix's update that may be nonzero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snella.delta import kept_count


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The fall of the global budget from 1 - init_sparsity to 1 - target_sparsity of all entries.

    Steps count optimiser steps done, from 1. Budgets change at multiples of `allocate_every`; the last one of a run
    is left out, so that every budget that is saved has been trained.
    """

    init_sparsity: float
    target_sparsity: float
    total_step: int
    allocate_every: int = 1
    init_warmup: int = 0  # steps at the start during which budgets are not touched
    final_warmup: int = 0  # steps at the end during which the budget stays at its target

    def budget(self, step: int, sizes: Sequence[int]) -> float | None:
        """Return the global budget, a number of entries, to be shared after `step`; None where budgets stay."""
        end = self.total_step // self.allocate_every * self.allocate_every
        if step % self.allocate_every or step >= end or step <= self.init_warmup:
            return None
        first = sum((1 - self.init_sparsity) * size for size in sizes)
        last = sum((1 - self.target_sparsity) * size for size in sizes)
        if step > end - self.final_warmup:
            return last
        progress = (step - self.init_warmup) / (end - self.final_warmup - self.init_warmup)
        return int(last + (first - last) * (1 - progress) ** 3)


def shares(budget: float, scores: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Split a budget of entries by score; no matrix gets more than its size.

    Whole shares first, truncated; what is left goes to the matrices that are not full, by score and as real
    numbers, until none is left or all are full. Where only zero scores remain the shares are equal.

    Raises:
        FloatingPointError: a score is not finite.
    """
    if not all(map(math.isfinite, scores)):
        raise FloatingPointError("diverged: the importance of the weights is not finite")
    weights = list(scores) if math.fsum(scores) > 0 else [1.0] * len(sizes)
    total = math.fsum(weights)
    given = [float(min(size, int(budget * weight / total))) for weight, size in zip(weights, sizes, strict=True)]
    left = budget - math.fsum(given)
    while left >= 1e-9:
        room = {i: size - given[i] for i, size in enumerate(sizes) if size > given[i]}
        if not room:
            break
        total = math.fsum(weights[i] for i in room)
        offer = {i: left * weights[i] / total if total > 0 else left / len(room) for i in room}
        taken = {i: min(room[i], offer[i]) for i in room}
        for i, amount in taken.items():
            # a full matrix is exactly full: rounding must not leave it a room that never closes
            given[i] = float(sizes[i]) if amount == room[i] else given[i] + amount
        if all(taken[i] == offer[i] for i in room):
            break  # everything was handed out
        left -= math.fsum(taken.values())
    return [int(share) for share in given]


def budgets(budget: float, scores: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Return the number of entries that each matrix keeps: its share, by way of the sparsity as published."""
    return [
        kept_count(min(max(1 - share / size, 0.0), 1.0), size)
        for share, size in zip(shares(budget, scores, sizes), sizes, strict=True)
    ]


class Importance:
    """Exponential moving averages of |P · grad P| for each factor, and of their deviation (AdaLoRA's sensitivity).

    Factors are named; each has a leading axis over the S matrices of its layer. A step with a gradient that is not
    finite is left out and counted in `skipped`: one NaN would otherwise stay in the averages for good.

    On CUDA an update takes a few operations over all factors at once, and the host waits for none of them.
    """

    def __init__(self, beta1: float = 0.85, beta2: float = 0.85) -> None:
        self.beta1, self.beta2 = beta1, beta2
        self.mean: dict[str, Tensor] = {}
        self.deviation: dict[str, Tensor] = {}
        self._skipped: int | Tensor = 0

    @property
    def skipped(self) -> int:
        """Steps left out so far; on CUDA this waits for the last one."""
        return int(self._skipped)

    @torch.no_grad()
    def update(self, factors: Mapping[str, Tensor]) -> None:
        """Take in the factors after an optimiser step, with the gradients of that step still in place.

        A factor without gradient counts as one whose gradient is zero.

        Raises:
            ValueError: no factor has a gradient.
        """
        if all(factor.grad is None for factor in factors.values()):
            raise ValueError(
                "no adapter weight has a gradient: call update_and_allocate after optimizer.step() "
                "and before the gradients are cleared"
            )
        for name, factor in factors.items():
            for averages in (self.mean, self.deviation):
                if name not in averages:
                    averages[name] = torch.zeros_like(factor, dtype=torch.float32)
                averages[name] = averages[name].to(factor.device)  # what was loaded may lie elsewhere
        devices = {factor.device for factor in factors.values()}
        if [device.type for device in devices] == ["cuda"]:
            self._update_at_once(factors)
            return
        finite = [factor.grad.isfinite().all() for factor in factors.values() if factor.grad is not None]
        if not all(flags.all() for flags in _stacked(finite)):
            self._skipped += 1
            return
        for name, factor in factors.items():
            mean, deviation = self.mean[name], self.deviation[name]
            importance = torch.zeros_like(mean) if factor.grad is None else (factor * factor.grad).abs().float()
            mean.mul_(self.beta1).add_(importance, alpha=1 - self.beta1)
            deviation.mul_(self.beta2).add_((importance - mean).abs(), alpha=1 - self.beta2)

    def _update_at_once(self, factors: Mapping[str, Tensor]) -> None:
        """Do as `update` does, for factors of one device, and leave it to the device whether a step counts."""
        gradients = [torch.zeros_like(f) if f.grad is None else f.grad for f in factors.values()]
        finite = torch.stack(torch._foreach_norm(gradients, torch.inf)).isfinite().all()
        products = torch._foreach_mul(list(factors.values()), gradients)
        importance = torch.cat([product.flatten() for product in products]).abs_().float()
        mean, deviation = (_as_one(averages, factors) for averages in (self.mean, self.deviation))
        new_mean = (mean * self.beta1).add_(importance, alpha=1 - self.beta1)
        far = (importance - new_mean).abs_()
        new_deviation = (deviation * self.beta2).add_(far, alpha=1 - self.beta2)
        mean.copy_(torch.where(finite, new_mean, mean))
        deviation.copy_(torch.where(finite, new_deviation, deviation))
        self._skipped = self._skipped + ~finite

    def scores(self, groups: Sequence[Sequence[str]]) -> list[list[float]]:
        """Return for each group of names the score of each of the S matrices that the factors (S, ...) make.

        That is Σ_P mean(I · U) over the factors P. The host waits for the device once.
        """
        parts = [
            (self.mean[name] * self.deviation[name]).flatten(1).mean(1).to(self.mean[groups[0][0]].device)
            for names in groups
            for name in names
        ]
        values = iter(torch.cat(parts).cpu().split([len(part) for part in parts]))
        # in float64 on the CPU: Apple's GPUs have none
        return [torch.stack([next(values) for _ in names]).double().sum(0).tolist() for names in groups]

    def score(self, names: Sequence[str]) -> list[float]:
        """Return the scores of one group, see `scores`."""
        return self.scores([names])[0]

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything a resumed run needs, as tensors."""
        state = {f"mean.{name}": tensor for name, tensor in self.mean.items()}
        state |= {f"deviation.{name}": tensor for name, tensor in self.deviation.items()}
        return state | {"skipped": torch.tensor(self.skipped)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave; tensors are copied."""
        self._skipped = int(state["skipped"])
        for kind, averages in (("mean.", self.mean), ("deviation.", self.deviation)):
            averages.clear()
            averages.update({k.removeprefix(kind): t.clone() for k, t in state.items() if k.startswith(kind)})


def _as_one(averages: dict[str, Tensor], factors: Mapping[str, Tensor]) -> Tensor:
    """Return the averages of the factors as one vector, of which those become views: again at the first call only."""
    parts = [averages[name] for name in factors]
    base = parts[0]._base
    sizes = [part.numel() for part in parts]
    if base is None or base.shape != (sum(sizes),) or any(part._base is not base for part in parts):
        base = torch.cat([part.flatten() for part in parts])
        for (name, factor), part in zip(factors.items(), base.split(sizes), strict=True):
            averages[name] = part.view(factor.shape)
    return base


def _stacked(flags: Sequence[Tensor]) -> list[Tensor]:
    """Return one tensor per device, so that a step waits for each device once."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for flag in flags:
        by_device.setdefault(flag.device, []).append(flag)
    return [torch.stack(group) for group in by_device.values()]
