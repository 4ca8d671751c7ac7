"""How each method configures PEFT: a function a method, which its row in `snella.config.method` names."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, OFTConfig, PeftConfig, ShiraConfig
from torch import nn

from snella.config.method import MethodConfig
from snella.errors import UserError
from snella.methods.layers import adapted_layers, targets_of
from snella.tuner import SnellaConfig

REMATERIALIZE = {"none": False, "inputs": True, "mlp": "mlp"}
# What the tuner's own configuration calls by the same names
SHARED = {part.name for part in fields(SnellaConfig)} & {part.name for part in fields(MethodConfig)}


def snella(model: nn.Module, settings: MethodConfig, total_step: int | None) -> SnellaConfig:
    """Return SNELLA's: sparse updates whose budgets move."""
    values: dict[str, Any] = {name: getattr(settings, name) for name in SHARED}
    values["target_modules"] = targets_of(settings.target_modules)
    values["rematerialize"] = REMATERIALIZE[settings.rematerialize]
    values["allocate_every"] = settings.allocate_every or 1
    return SnellaConfig(**values, total_step=total_step)


def snell(model: nn.Module, settings: MethodConfig, total_step: int | None) -> PeftConfig:
    """Return SNELL's: updates that are equally sparse everywhere, throughout."""
    sparsity = settings.target_sparsity
    dense = sparsity == 0 and settings.gate == "published"  # the published code selects nothing then
    gate = "none" if dense else settings.gate
    config = snella(model, replace(settings, kernel="pwl", gate=gate, init_sparsity=sparsity), total_step)
    config.allocate_every = None
    return config


def lora(model: nn.Module, settings: MethodConfig, total_step: int | None) -> PeftConfig:
    """Return LoRA's."""
    return _lora(model, settings)


def dora(model: nn.Module, settings: MethodConfig, total_step: int | None) -> PeftConfig:
    """Return DoRA's: LoRA's, and the magnitudes."""
    return _lora(model, settings, use_dora=True)


def _lora(model: nn.Module, settings: MethodConfig, *, use_dora: bool = False) -> PeftConfig:
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.r,  # the update is B A, not scaled
        lora_dropout=settings.update_dropout,
        use_dora=use_dora,
        **adapted_layers(model, settings),
    )


def adalora(model: nn.Module, settings: MethodConfig, total_step: int | None) -> PeftConfig:
    """Return AdaLoRA's: ranks that fall to `r` in the mean.

    Raises:
        UserError: too few steps.
    """
    if total_step is None:
        raise UserError("adalora needs total_step, the optimiser steps of the whole training")
    start = settings.init_warmup
    end = settings.final_warmup or total_step // 10  # ranks fall until then, and what is left has to be trained
    if total_step - end < max(start + 1, 2):
        raise UserError(
            f"adalora: {total_step} steps leave none between the warm-ups of {start} and {end}; train longer"
        )
    return AdaLoraConfig(
        target_r=settings.r,
        init_r=settings.r + (settings.r + 1) // 2,  # half as much again, as PEFT's defaults, 12 and 8
        lora_alpha=settings.r,
        lora_dropout=settings.update_dropout,
        tinit=start,
        tfinal=end,
        deltaT=settings.allocate_every or 1,
        total_step=total_step,
        **adapted_layers(model, settings),
    )


def shira(model: nn.Module, settings: MethodConfig, total_step: int | None) -> PeftConfig:
    """Return SHiRA's: as many entries as that rank has."""
    torch.sparse.check_sparse_tensor_invariants.disable()  # as by default, but then torch warns
    return ShiraConfig(r=settings.r, **adapted_layers(model, settings))


def oft(model: nn.Module, settings: MethodConfig, total_step: int | None) -> PeftConfig:
    """Return OFT's, with PEFT's own block size, 32: a rank has no meaning here."""
    return OFTConfig(**adapted_layers(model, settings))
