"""A trained adapter as one of LoRA's, for what loads nothing else: vLLM, llama.cpp, diffusers' `load_lora_weights`.

    delta (m, n), sparse and of a high rank ─ SVD ─ the first R singular vectors ─ lora_B (m, R), lora_A (R, n)

It is an approximation, whose error is told for each layer: a sparse update has no low rank, and a large R is needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from snella.errors import UserError
from snella.files import writing_into
from snella.integrations.diffusers import KEY_PREFIX
from snella.tuner.base_layers import Convolutional
from snella.tuner.layer import SnellaLayer

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"  # diffusers' name, which load_lora_weights looks for
KOHYA_FILE = "kohya.safetensors"


@dataclass(frozen=True)
class LoraLayer:
    """An update B A of one layer, and the share of the squares of what it stands for that it holds."""

    A: Tensor  # (R, in), of a convolution (R, in, kh, kw)
    B: Tensor  # (out, R), of a convolution (out, R, 1, 1)
    share: float

    @property
    def rank(self) -> int:
        return len(self.A)


@dataclass(frozen=True)
class Lora:
    """A LoRA: its layers by name, other tensors by PEFT's names (a trained head), and PEFT's config."""

    layers: Mapping[str, LoraLayer]
    others: Mapping[str, Tensor]
    config: LoraConfig

    def save(self, folder: Path) -> None:
        """Write the files that PEFT loads into a folder."""
        tensors = dict(self.others)
        for name, layer in self.layers.items():
            tensors |= {f"{KEY_PREFIX}{name}.lora_{factor}.weight": getattr(layer, factor) for factor in "AB"}
        save_file(_ready(tensors), folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        self.config.save_pretrained(os.fspath(folder))

    def save_for_diffusers(self, folder: Path, part: str) -> None:
        """Write what `load_lora_weights` of a pipeline loads, whose network is called `part`, into a folder.

        Of a `unet` also kohya's names, which ComfyUI and AUTOMATIC1111 read.
        """
        tensors: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            tensors |= {f"{part}.{name}.lora_{factor}.weight": getattr(layer, factor) for factor in "AB"}
        save_file(_ready(tensors), folder / DIFFUSERS_FILE, metadata={"format": "pt"})
        if part != "unet":
            return
        kohya: dict[str, Tensor] = {}
        alpha = max(layer.rank for layer in self.layers.values())  # of all layers: diffusers loses some layers' own
        for name, layer in self.layers.items():
            key, root = f"lora_unet_{name.replace('.', '_')}", (layer.rank / alpha) ** 0.5  # alpha / rank multiplies BA
            kohya |= {f"{key}.lora_down.weight": root * layer.A, f"{key}.lora_up.weight": root * layer.B}
            kohya[f"{key}.alpha"] = torch.tensor(float(alpha))
        save_file(_ready(kohya), folder / KOHYA_FILE, metadata={"format": "pt"})


def save_as_lora(
    model: PeftModel, folder: str | os.PathLike[str], rank: int | float, adapter_name: str = "default"
) -> dict[str, float]:
    """Save the adapter of a model as a LoRA that is close to it, as `as_lora` makes it, in PEFT's files.

    Args:
        model, rank, adapter_name: as in `as_lora`.
        folder: where the LoRA's files are written.

    Returns:
        The relative error of each layer's update, by name: |delta - B A| / |delta|, in the Frobenius norm.

    Raises:
        UserError: as `as_lora`, or the folder cannot be written to.

    Example:
        >>> errors = save_as_lora(model, "as_lora", rank=64)  # doctest: +SKIP
    """
    lora = as_lora(model, rank, adapter_name)
    with writing_into(Path(folder)) as temporary:
        lora.save(temporary)
    return {name: max(1 - layer.share, 0.0) ** 0.5 for name, layer in lora.layers.items()}


@torch.no_grad()
def as_lora(model: PeftModel, rank: int | float, adapter_name: str = "default", part: str = "") -> Lora:
    """Return the LoRA that is closest to the adapter of a model. What is trained as a whole, a head, stays as it is.

    Args:
        model: with a SNELLA adapter.
        rank: that of every layer, or, as a number above 0 and up to 1, the share of each update's squares to keep.
        adapter_name: which of the model's adapters.
        part: name of the module in the model that the LoRA is for, which holds all that is tuned; "": the model.

    Raises:
        UserError: no such adapter, a layer of which PEFT has no LoRA or one that has no such rank.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, SnellaLayer) and adapter_name in layer.settings]
    if not layers:
        raise UserError(f"the model has no SNELLA adapter {adapter_name!r}")
    if not (rank >= 1 if isinstance(rank, int) else 0 < rank <= 1):
        raise UserError(f"rank={rank} is neither a whole number from 1 nor a share of the update, above 0 and up to 1")
    for layer in layers:
        _check(layer, rank)
    tuner: Any = model.peft_config[adapter_name]
    root = f"{part}." if part else ""
    by_name = {layer.name.removeprefix(root): _factors(layer, adapter_name, rank) for layer in layers}
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    others = {
        name.replace(KEY_PREFIX + root, KEY_PREFIX, 1): tensor
        for name, tensor in state.items()
        if ".snella_" not in name
    }
    config = _config(tuner, by_name, [name for name, _ in model.get_base_model().get_submodule(part).named_modules()])
    config.fan_in_fan_out = any(isinstance(layer.get_base_layer(), Conv1D) for layer in layers)
    config.modules_to_save = [name.removeprefix(root) for name in tuner.modules_to_save or ()] or None
    return Lora(by_name, others, config)


def _check(layer: SnellaLayer, rank: int | float) -> None:
    """Refuse a layer that no LoRA of this rank is for. Raises UserError."""
    base = layer.get_base_layer()
    if isinstance(base, Convolutional):
        odd = {
            "dilation": set(base.dilation) != {1},
            "padding_mode": base.padding_mode != "zeros",
            "groups": base.groups > 1,
        }
        if told := ", ".join(f"{name}={getattr(base, name)!r}" for name, there in odd.items() if there):
            raise UserError(
                f"{layer.name} has {told}, with which PEFT's LoRA of a convolution is another product; "
                "merge into the weights: merge_and_unload(), or snella merge without --lora"
            )
    full = min(layer.out_features, base.weight.numel() // layer.out_features)
    if isinstance(rank, int) and rank > full:
        raise UserError(f"rank={rank} is not between 1 and {full}, which is all of {layer.name}")


def _factors(layer: SnellaLayer, adapter_name: str, rank: int | float) -> LoraLayer:
    """Return the first singular vectors of a layer's update, each with the root of its singular value."""
    U, S, Vh = torch.linalg.svd(layer.delta_matrices(adapter_name).float(), full_matrices=False)
    squares = S.double().square()
    total = squares.sum()
    if not total.isfinite():
        raise UserError(f"the update of {layer.name} is not finite")
    kept = rank if isinstance(rank, int) else min(int((squares.cumsum(0) < rank * total).sum()) + 1, len(S))
    share = (squares[:kept].sum() / total).item() if total else 1.0
    root = S[:kept].sqrt()
    A, B = root[:, None] * Vh[:kept], U[:, :kept] * root
    if isinstance(layer.get_base_layer(), Convolutional):
        weight = layer.get_base_layer().weight
        A, B = A.view(kept, *weight.shape[1:]), B.view(len(weight), kept, *(1 for _ in weight.shape[2:]))
    return LoraLayer(A, B, share)


def _config(own: Any, layers: Mapping[str, LoraLayer], names: Sequence[str]) -> LoraConfig:
    """Return the config of a LoRA of these layers, in a model whose modules have these names."""
    ranks = [layer.rank for layer in layers.values()]
    usual = max(set(ranks), key=ranks.count)
    # anchored: PEFT reads a key as the end of a name, in the order of the alphabet
    pattern = {f"^{re.escape(name)}": layer.rank for name, layer in layers.items()} if len(set(ranks)) > 1 else {}
    ends = tuple(f".{name}" for name in layers)
    others = any(name.endswith(ends) for name in names if name not in layers)
    return LoraConfig(
        r=usual,
        lora_alpha=usual,  # the update is B A, not scaled
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        target_modules="|".join(map(re.escape, layers)) if others else list(layers),
        bias="lora_only" if own.bias == "snella_only" else own.bias,
        task_type=own.task_type,
        base_model_name_or_path=own.base_model_name_or_path,
        revision=own.revision,
        inference_mode=True,
    )


def _ready(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies that can be written: on the CPU, each in memory of its own."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
