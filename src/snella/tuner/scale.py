"""The settings of a layer's updates, and their constant c before the distances: one for all layers, or relative to W.

    c = scale                                        where `SnellaConfig.scale` is given (0.1 as published)
    c = relative_scale · √rms(W)                     gates that square K: `published` and `soft`
    c = relative_scale · LINEAR_GAIN · rms(W)        gates that do not: `hard` and `none`

A relative constant is saved with the adapter, since another base, or a random one that is loaded later, would give
another. It is saved in whole units of SCALE_UNIT because a cast of the model to half precision would round a float.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from snella.ops import UpdateSpec
from snella.tuner.config import SnellaConfig

SCALE_UNIT = 2.0**-32

# The published code drops no inputs of the update of attention's output projection.
NO_INPUT_DROPOUT = ("proj", "o_proj", "out_proj")

# What gates that do not square multiply entries by, over the root of the weight's rms: what the others do where the
# update is a hundredth of the weight. Without it an update is as large as the weight after a few steps.
LINEAR_GAIN = 0.1


class LayerScale(NamedTuple):
    """A layer's constant and what follows from it."""

    c: float
    units: int | None  # of SCALE_UNIT that c has; None where it is not relative
    start: float  # what freshly drawn factors are multiplied by, so that updates start the same under any constant
    in_scalars: bool  # whether mixk's scalars count in units of c: they would outgrow an update far smaller than they


def choose_scale(config: SnellaConfig, weight: Tensor) -> LayerScale:
    """Return the constant of an adapter for a layer with this frozen weight (out, ...)."""
    squares = config.gate in ("published", "soft")
    if config.scale is not None:
        return LayerScale(config.scale, None, config.start_scale / config.scale, False)
    root = math.sqrt(_rms(weight))
    gain = 1.0 if squares else LINEAR_GAIN * root
    units = max(round(config.relative_scale * root * gain / SCALE_UNIT), 1)
    c = units * SCALE_UNIT
    return LayerScale(c, units, gain * config.start_scale / c, not squares)


def saved_scales(units: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the constants by adapter name, given the buffers (0-d, in SCALE_UNIT) that a state dict may have set.

    Buffers without values yet (meta) are left out.
    """
    return {name: tensor.item() * SCALE_UNIT for name, tensor in units.items() if not tensor.is_meta}


def _rms(weight: Tensor) -> float:
    """Return the root mean square; a weight of zeros, or without values yet (meta), counts as a new layer's."""
    size = 0.0 if weight.is_meta else torch.linalg.vector_norm(weight, dtype=torch.float32).item()
    return size / math.sqrt(weight.numel()) or 1 / math.sqrt(3 * weight[0].numel())


@dataclass(frozen=True)
class UpdateSettings:
    """What a layer's forward pass has to know of an adapter besides its tensors."""

    spec: UpdateSpec
    dropout: float
    drop_path: float
    rematerialize: bool | Literal["mlp"]
    sample_tokens: float | None
    scalars_in_units_of_scale: bool


def update_settings(config: SnellaConfig, last_name: str, scale: LayerScale) -> UpdateSettings:
    """Return the settings of a layer, of whose name `last_name` is the last part."""
    return UpdateSettings(
        spec=UpdateSpec(config.kernel, config.gate, scale.c),
        dropout=0.0 if last_name in NO_INPUT_DROPOUT else config.update_dropout,
        drop_path=config.update_drop_path,
        rematerialize=config.rematerialize,
        sample_tokens=config.sample_tokens,
        scalars_in_units_of_scale=scale.in_scalars,
    )
