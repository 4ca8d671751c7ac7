"""Budgets of the adapters in a model: which share of its update each matrix keeps, as training goes on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from snella.allocation import Importance, Schedule, budgets
from snella.errors import UserError
from snella.ops import unpacked
from snella.travel import Adapted, Travel, way
from snella.tuner.base_layers import out_first
from snella.tuner.config import SnellaConfig
from snella.tuner.layer import SnellaLayer
from snella.tuner.model_card import Kept
from snella.tuner.scale import SQUARING, rms


class _Matrix(NamedTuple):
    name: str
    size: int
    target: float


class AllocatingTuner(BaseTuner):
    """A PEFT tuner whose layers' matrices compete for a budget, of each adapter by itself."""

    peft_config: dict[str, SnellaConfig]  # pyright: ignore[reportIncompatibleVariableOverride]

    def adapted_layers(self) -> list[SnellaLayer]:
        """Return the adapted layers."""
        return [module for module in self.model.modules() if isinstance(module, SnellaLayer)]

    def _layers_of(self, adapter_name: str) -> list[SnellaLayer]:
        return [layer for layer in self.adapted_layers() if adapter_name in layer.settings]

    def _allocated(self) -> list[str]:
        """Return the active adapters that train; all active ones where none does."""
        active = self.active_adapters
        trains = [name for name in active if any(layer.snella_A[name].requires_grad for layer in self._layers_of(name))]
        return trains or list(active)

    def _importance(self, adapter_name: str) -> Importance:
        # not made in __init__: PEFT's own __init__ injects before a subclass could set anything
        by_adapter = vars(self).setdefault("_importance_by_adapter", {})
        if adapter_name not in by_adapter:
            config = self.peft_config[adapter_name]
            by_adapter[adapter_name] = Importance(config.beta1, config.beta2)
        return by_adapter[adapter_name]

    def update_and_allocate(self, step: int, total_step: int | None = None) -> dict[str, Any] | None:
        """Shorten the step to its share of the way, update the importance and, when it is time, the active budgets.

        Call it after `optimizer.step()` and before the gradients are cleared, with gradients that are not scaled.
        Several active adapters have each their own budget.

        Args:
            step: optimiser steps done, from 1.
            total_step: optimiser steps of the training, where the adapter's config leaves it open.

        Returns:
            None, or when budgets changed a record: step, budget (entries, all matrices), kept and size (entries, by
            matrix) and skipped (steps left out so far for a gradient that was not finite). Where several adapters are
            active: such records by adapter.

        Raises:
            ValueError: no adapter weight has a gradient.
        """
        names = self._allocated()
        records = {name: self._update_and_allocate(name, step, total_step) for name in names}
        changed = {name: record for name, record in records.items() if record is not None}
        return changed.get(names[0]) if len(names) == 1 else changed or None

    def _update_and_allocate(self, name: str, step: int, total_step: int | None) -> dict[str, Any] | None:
        layers, config, importance = self._layers_of(name), self.peft_config[name], self._importance(name)
        total_step = total_step if config.total_step is None else config.total_step
        self._limit_travel(name, step, total_step)
        if config.allocate_every is None:
            return None
        factors = {
            f"{layer.name}.{factor}": _gathered(getattr(layer, f"snella_{factor}")[name])
            for layer in layers
            for factor in "AB"
        }
        _check_gradients(self.model, factors.values())
        importance.update(factors)
        if config.gate == "none":
            return None  # nothing is selected
        if total_step is None:
            if config.init_sparsity != config.target_sparsity and step == 1:
                warnings.warn(
                    f"total_step is None: budgets stay at init_sparsity={config.init_sparsity}; "
                    f"set total_step to reach target_sparsity={config.target_sparsity}",
                    stacklevel=4,
                )
            return None
        groups = [[f"{layer.name}.A", f"{layer.name}.B"] for layer in layers]
        matrices = [
            _Matrix(matrix, layer.matrix_size(name), config.target(layer.name))
            for layer in layers
            for matrix in layer.matrix_names(name)
        ]
        if _schedule(config, total_step, 0).budget(step, [1]) is None:
            return None
        scores = [score for of_layer in importance.scores(groups) for score in of_layer]
        budget, kept = 0.0, [0] * len(matrices)
        for target in dict.fromkeys(matrix.target for matrix in matrices):  # one, but for a sparsity_pattern
            group = [i for i, matrix in enumerate(matrices) if matrix.target == target]
            sizes = [matrices[i].size for i in group]
            share = _schedule(config, total_step, target).budget(step, sizes)
            assert share is not None
            budget += share
            for i, count in zip(group, budgets(share, [scores[i] for i in group], sizes), strict=True):
                kept[i] = count
        self._set_kept(name, layers, kept)
        return {
            "step": step,
            "budget": int(budget),
            "kept": {matrix.name: count for matrix, count in zip(matrices, kept, strict=True)},
            "size": {matrix.name: matrix.size for matrix in matrices},
            "skipped": importance.skipped,
        }

    def start_travel(self) -> None:
        """Take the active adapter's parameters as they are for those before the next step, see `max_travel`.

        Without it the first call of `update_and_allocate` finds nothing to compare, and leaves that step as it is.
        """
        for name in self._allocated():
            if self.peft_config[name].max_travel is not None:
                self._travel(name).start([self._adapted(layer, name) for layer in self._layers_of(name)])

    def _limit_travel(self, name: str, step: int, total_step: int | None) -> None:
        config = self.peft_config[name]
        if config.max_travel is not None and total_step is not None:
            layers = [self._adapted(layer, name) for layer in self._layers_of(name)]
            self._travel(name).limit(layers, config.max_travel * way(step, total_step))

    def _travel(self, name: str) -> Travel:
        return vars(self).setdefault("_travel_by_adapter", {}).setdefault(name, Travel())

    def _adapted(self, layer: SnellaLayer, name: str) -> Adapted:
        sizes: dict[str, float] = vars(self).setdefault("_weight_sizes", {})
        if layer.name not in sizes:
            base = layer.get_base_layer()
            sizes[layer.name] = rms(out_first(base, unpacked(base.weight.data)))
        settings = layer.settings[name]
        tables = (layer.snella_A, layer.snella_B, layer.snella_alpha, layer.snella_gamma, layer.snella_beta)
        return Adapted(
            parameters=tuple(table[name] for table in tables if name in table),
            kernel=settings.spec.kernel,
            squares=settings.spec.gate in SQUARING,
            scale=settings.spec.scale,
            unit=settings.unit,
            size=sizes[layer.name],
        )

    def kept_share(self) -> Kept | None:
        """Return what the active adapter's update keeps of its entries; None where its gate selects nothing."""
        name = self._allocated()[0]
        layers, config = self._layers_of(name), self.peft_config[name]
        if config.gate == "none":
            return None
        sizes = [layer.get_base_layer().weight.numel() for layer in layers]
        kept = torch.cat([layer.kept(name).cpu() for layer in layers]).sum()
        wanted = sum((1 - config.target(layer.name)) * size for layer, size in zip(layers, sizes, strict=True))
        return Kept(int(kept), sum(sizes), wanted / sum(sizes))

    def cut_to_target(self) -> None:
        """Set the budgets to the target, each matrix's in proportion to what it has, and the smallest entries to zero.

        For an adapter whose training ended early. Nothing is trained: evaluate it again.
        """
        for name in self._allocated():
            layers, config = self._layers_of(name), self.peft_config[name]
            if config.gate == "none":
                raise UserError("gate='none' selects no entries, and there is nothing to cut")
            now = [float(kept) for layer in layers for kept in layer.kept(name).tolist()]
            sizes = [layer.matrix_size(name) for layer in layers for _ in layer.matrix_names(name)]
            kept = self.kept_share()
            assert kept is not None
            self._set_kept(name, layers, budgets(kept.target * sum(sizes), now, sizes))

    @torch.no_grad()
    def _set_kept(self, adapter_name: str, layers: list[SnellaLayer], kept: list[int]) -> None:
        start, on_device = 0, dict[torch.device, Tensor]()  # all of them, sent at once and without a wait
        for layer in layers:
            buffer = layer.kept(adapter_name)
            if buffer.device not in on_device:
                on_device[buffer.device] = torch.tensor(kept).to(buffer.device, non_blocking=True)
            buffer.copy_(on_device[buffer.device][start : start + len(buffer)])
            start += len(buffer)

    def allocator_state_dict(self) -> dict[str, Tensor]:
        """Return the running averages of the active adapter's importance. Budgets are part of the model's state.

        Those of several adapters have the adapter's name and a / before theirs.
        """
        names = self._allocated()
        if len(names) == 1:
            return self._importance(names[0]).state_dict()
        states = {name: self._importance(name).state_dict() for name in names}
        return {f"{name}/{key}": tensor for name, state in states.items() for key, tensor in state.items()}

    def load_allocator_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `allocator_state_dict` gave, for the active adapters, whose weights are loaded."""
        names = self._allocated()
        for name in names:
            prefix = "" if len(names) == 1 else f"{name}/"
            own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
            self._importance(name).load_state_dict(own)
        self.start_travel()


def _gathered(factor: Tensor) -> Tensor:
    """Return a factor (S, H, ., r/H) with its gradient, whole where FSDP2 has sharded them. All processes take part.

    Raises:
        UserError: it is a part that FSDP1 left here.
    """
    if isinstance(factor, DTensor):
        whole = cast(DTensor, factor.detach()).full_tensor()
        whole.grad = factor.grad.full_tensor() if isinstance(factor.grad, DTensor) else None
        return whole
    if factor.ndim != 4:
        raise UserError(
            "FullyShardedDataParallel has flattened the adapter's factors, and budgets need them whole: shard the "
            "model with FSDP2 (torch.distributed.fsdp.fully_shard; in accelerate, fsdp_version: 2), or train in DDP"
        )
    return factor


def _check_gradients(model: nn.Module, factors: Iterable[Tensor]) -> None:
    """Raise UserError where no factor has a gradient, in a model whose blocks transformers checkpoints."""
    if any(factor.grad is not None for factor in factors):
        return
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise UserError(
            "no adapter weight has a gradient: call update_and_allocate after optimizer.step() and before the "
            "gradients are cleared; where blocks are checkpointed by re-entry, also call "
            "model.enable_input_require_grads() before training, or checkpoint with use_reentrant=False"
        )


def _schedule(config: SnellaConfig, total_step: int, target_sparsity: float) -> Schedule:
    assert config.allocate_every is not None
    return Schedule(
        init_sparsity=config.init_sparsity,
        target_sparsity=target_sparsity,
        total_step=total_step,
        allocate_every=config.allocate_every,
        init_warmup=config.init_warmup,
        final_warmup=config.final_warmup,
    )
