"""What a method with a moving budget does after each optimiser step, with a state that a resumed run goes on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.adalora import AdaLoraLayer
from torch import Tensor


class SnellaAllocation:
    """snella's and snell's: the way of a step, importance and budgets by the tuner."""

    def __init__(self, model: Any) -> None:
        self.tuner = model.base_model
        self.tuner.start_travel()

    def __call__(self, step: int) -> dict[str, Any] | None:
        return self.tuner.update_and_allocate(step)

    def state_dict(self) -> dict[str, Tensor]:
        return self.tuner.allocator_state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.tuner.load_allocator_state_dict(state)


def snell_travel(model: Any) -> SnellaAllocation | None:
    """Return what bounds snell's steps, where that is asked for; its budgets never move."""
    bounded = model.peft_config[model.active_adapter].max_travel is not None
    return SnellaAllocation(model) if bounded else None


class AdaLoraAllocation:
    """AdaLoRA's: importance and ranks by PEFT, whose averages and pattern of ranks make up the state."""

    AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")

    def __init__(self, model: Any) -> None:
        self.tuner = model.base_model
        self.config = model.peft_config[model.active_adapter]
        self.skipped = 0

    def __call__(self, step: int) -> dict[str, Any] | None:
        ranks = self.config.rank_pattern
        falling = step < self.config.total_step - self.config.tfinal
        if falling and not self._finite():  # one such gradient would stay in PEFT's averages for good
            self.skipped += 1
            return None
        self.tuner.update_and_allocate(step)
        if self.config.rank_pattern is ranks:
            return None
        kept = {name.rpartition(".lora_E")[0]: sum(left) for name, left in self.config.rank_pattern.items()}
        sizes = {name.rpartition(".lora_E")[0]: len(left) for name, left in self.config.rank_pattern.items()}
        return {"step": step, "budget": sum(kept.values()), "kept": kept, "size": sizes, "skipped": self.skipped}

    def state_dict(self) -> dict[str, Tensor]:
        averages = {
            f"{table}.{name}": tensor
            for table in self.AVERAGES
            for name, tensor in getattr(self.tuner.rankallocator, table).items()
        }
        ranks = {f"rank_pattern.{name}": torch.tensor(left) for name, left in (self.config.rank_pattern or {}).items()}
        return {**averages, **ranks, "skipped": torch.tensor(self.skipped)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        device = next(self.tuner.parameters()).device
        tables: dict[str, dict[str, Tensor]] = {table: {} for table in (*self.AVERAGES, "rank_pattern")}
        for key, tensor in state.items():
            if key != "skipped":
                table, _, name = key.partition(".")
                tables[table][name] = tensor
        for table in self.AVERAGES:
            # a copy: PEFT's own tables are rebound at each step, but ours must not change with the caller's
            averages = {name: tensor.to(device, copy=True) for name, tensor in tables[table].items()}
            setattr(self.tuner.rankallocator, table, averages)
        self.config.rank_pattern = {name: left.tolist() for name, left in tables["rank_pattern"].items()} or None
        self.skipped = int(state["skipped"])

    def _finite(self) -> bool:
        gradients = [p.grad for name, p in self.tuner.named_parameters() if "lora_" in name and p.grad is not None]
        return bool(torch.stack([torch.isfinite(gradient).all() for gradient in gradients]).all())


@contextmanager
def left_ranks(model: Any) -> Iterator[None]:
    """Keep, while AdaLoRA is saved, the ranks of its weights, which may be an earlier epoch's.

    PEFT leaves out what its configuration calls pruned: it would cut off singular values that were still in use.
    """
    config = model.peft_config[model.active_adapter]
    ranks = config.rank_pattern
    if ranks is not None:
        config.rank_pattern = {
            f"{name}.lora_E.{model.active_adapter}": _nonzero(module.lora_E[model.active_adapter])
            for name, module in model.base_model.model.named_modules()
            if isinstance(module, AdaLoraLayer)
        }
    try:
        yield
    finally:
        config.rank_pattern = ranks


def _nonzero(values: Tensor) -> list[bool]:
    left = (values != 0).flatten().tolist()
    return left if any(left) else [True, *left[1:]]  # PEFT's convolution cannot have rank 0
