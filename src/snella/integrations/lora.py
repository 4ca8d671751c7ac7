"""A trained adapter as one of LoRA's, for what loads nothing else: vLLM, llama.cpp, diffusers' `load_lora_weights`.

    delta (m, n), sparse and of a high rank ─ SVD ─ the first R singular vectors ─ lora_B (m, R), lora_A (R, n)

It is an approximation, whose error is told for each layer: a sparse update has no low rank, and a large R is needed.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.conversion import save_as_lora as peft_save_as_lora
from torch import nn

from snella.errors import UserError
from snella.tuner.layer import SnellaLayer


@torch.no_grad()
def save_as_lora(
    model: PeftModel, folder: str | os.PathLike[str], rank: int | float, adapter_name: str = "default"
) -> dict[str, float]:
    """Save the adapter of a model as a LoRA that is close to it.

    Args:
        model: with a SNELLA adapter, of linear layers alone and without biases that train.
        folder: where PEFT's files of the LoRA are written.
        rank: that of every layer, or, as a number above 0 and up to 1, the share of each update's squares to keep.
        adapter_name: which of the model's adapters.

    Returns:
        The relative error of each layer's update, by name: |delta - B A| / |delta|, in the Frobenius norm.

    Raises:
        UserError: a layer that is not linear, or that has no such rank.

    Example:
        >>> errors = save_as_lora(model, "as_lora", rank=64)  # doctest: +SKIP
    """
    layers = [layer for layer in model.modules() if isinstance(layer, SnellaLayer) and adapter_name in layer.settings]
    if not layers:
        raise UserError(f"the model has no SNELLA adapter {adapter_name!r}")
    errors = {}
    for layer in layers:
        base = layer.get_base_layer()
        if not isinstance(base, nn.Linear):
            raise UserError(f"{layer.name} is a {type(base).__name__}; PEFT converts linear layers to LoRA alone")
        if isinstance(rank, int) and not 1 <= rank <= min(base.weight.shape):
            raise UserError(f"rank={rank} is not between 1 and {min(base.weight.shape)}, which is all of {layer.name}")
        errors[layer.name] = _error(layer.get_delta_weight(adapter_name), rank)
    options: dict[str, Any] = {"rank": rank, "adapter_name": adapter_name}
    peft_save_as_lora(os.fspath(folder), model, **options)
    return errors


def _error(delta: torch.Tensor, rank: int | float) -> float:
    """Return what is left of an update beside its first singular vectors, relative to it."""
    squares = torch.linalg.svdvals(delta.float()).square()
    total = squares.sum()
    if total == 0:
        return 0.0
    kept = rank if isinstance(rank, int) else int((squares.cumsum(0) / total < rank).sum()) + 1
    return (squares[kept:].sum() / total).sqrt().item()
