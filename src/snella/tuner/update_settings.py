"""The settings of one adapter's updates of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from snella.ops import UpdateSpec
from snella.tuner.config import SnellaConfig
from snella.tuner.scale import LayerScale

# The published code drops no inputs of the update of attention's output projection.
NO_INPUT_DROPOUT = ("proj", "o_proj", "out_proj")


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
