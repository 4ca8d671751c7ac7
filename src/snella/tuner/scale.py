"""The settings of a layer's updates, and their constant c before the distances: one for all layers, or relative to W.

    c = scale                                        where `SnellaConfig.scale` is given (0.1 as published)
    c = relative_scale · √rms(W)                     gates that square K: `published` and `soft`
    c = relative_scale · LINEAR_GAIN · rms(W)        gates that do not: `hard` and `none`

A relative constant is saved with the adapter, since another base, or a random one that is loaded later, would give
another. It is saved in whole units of SCALE_UNIT because a cast of the model to half precision would round a float.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from snella.ops import Factors, UpdateSpec, adapted_weight, delta_by_definition, is_traced
from snella.tuner.config import SnellaConfig

SCALE_UNIT = 2.0**-32

# The published code drops no inputs of the update of attention's output projection.
NO_INPUT_DROPOUT = ("proj", "o_proj", "out_proj")

# What gates that do not square multiply entries by, over the root of the weight's rms: what the others do where the
# update is a hundredth of the weight. Without it an update is as large as the weight after a few steps.
LINEAR_GAIN = 0.1


SQUARING = ("published", "soft")  # gates that multiply an entry by its own size


class LayerScale(NamedTuple):
    """A layer's constant and what follows from it."""

    c: float
    units: int | None  # of SCALE_UNIT that c has; None where it is not relative
    start: float  # what freshly drawn factors are multiplied by, so that updates start the same under any constant
    in_scalars: bool  # whether mixk's scalars count in units of c: they would outgrow an update far smaller than they


def choose_scale(config: SnellaConfig, weight: Tensor) -> LayerScale:
    """Return the constant of an adapter for a layer with this frozen weight (out, ...)."""
    squares = config.gate in SQUARING
    if config.scale is not None:
        return LayerScale(config.scale, None, config.start_scale / config.scale, False)
    root = math.sqrt(rms(weight))
    gain = 1.0 if squares else LINEAR_GAIN * root
    units = max(round(config.relative_scale * root * gain / SCALE_UNIT), 1)
    c = units * SCALE_UNIT
    return LayerScale(c, units, gain * config.start_scale / c, not squares)


def saved_scales(units: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the constants by adapter name, given the buffers (0-d, in SCALE_UNIT) that a state dict may have set.

    Buffers without values yet (meta) are left out.
    """
    return {name: tensor.item() * SCALE_UNIT for name, tensor in units.items() if not tensor.is_meta}


def rms(weight: Tensor) -> float:
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
    init_alpha: float

    @property
    def unit(self) -> float:
        """Return what mixk's scalars are multiplied by."""
        return self.spec.scale if self.scalars_in_units_of_scale else 1


def update_settings(config: SnellaConfig, last_name: str, scale: LayerScale) -> UpdateSettings:
    """Return the settings of a layer, of whose name `last_name` is the last part."""
    return UpdateSettings(
        spec=UpdateSpec(config.kernel, config.gate, scale.c),
        dropout=0.0 if last_name in NO_INPUT_DROPOUT else config.update_dropout,
        drop_path=config.update_drop_path,
        rematerialize=config.rematerialize,
        sample_tokens=config.sample_tokens,
        scalars_in_units_of_scale=scale.in_scalars,
        init_alpha=config.init_alpha,
    )


class Start(NamedTuple):
    """What makes an adapter's first update of a layer again, as three integers that are saved with it."""

    seed: int
    factor: float  # what freshly drawn factors are multiplied by
    kept: int  # entries of each matrix

    @classmethod
    def drawn(cls, factor: float, kept: int) -> Start:
        """Return a start with a seed from torch's generator."""
        return cls(int(torch.randint(2**62, (), device="cpu")), factor, kept)

    @classmethod
    def of(cls, saved: Tensor) -> Start:
        """Return what `saved` gave."""
        seed, bits, kept = saved.tolist()
        return cls(seed, struct.unpack("<d", struct.pack("<q", bits))[0], kept)

    def saved(self) -> Tensor:
        """Return it as integers (3,): a cast of the model to half precision would round a float."""
        return torch.tensor([self.seed, struct.unpack("<q", struct.pack("<d", self.factor))[0], self.kept])


def draw_factors(A: Tensor, B: Tensor, factor: float, seed: int | None = None) -> None:
    """Draw factors (S, H, ., r/H) in place, each 3-D slice by itself, as published, times a factor.

    With a seed they are drawn on the CPU, and are such that a cast to half precision and back leaves them as they are.
    """
    generator = None if seed is None else torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        for part in (*A, *B):
            drawn = part if generator is None else torch.empty(part.shape, device="cpu")
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            drawn.mul_(factor)
            if generator is not None:
                part.copy_(drawn.half().bfloat16())


def first_factors(now: Factors, start: Start, settings: UpdateSettings) -> Factors:
    """Return the factors that a layer's adapter began with, of the shapes that it has now."""
    A, B = torch.empty_like(now.A), torch.empty_like(now.B)
    draw_factors(A, B, start.factor, start.seed)
    if now.alpha is None:  # kernel pwl
        return Factors(A, B, None, None, None)
    values = (settings.unit * value for value in (settings.init_alpha, 1.0, 0.0))
    return Factors(A, B, *(torch.full_like(now.alpha, value) for value in values))


def delta_of(factors: Factors, kept: Tensor, settings: UpdateSettings) -> Tensor:
    """Return the update (out, in) of all S matrices, in at least fp32; differentiable."""
    if is_traced(factors.A):
        return delta_by_definition(factors, kept, settings.spec)
    return adapted_weight(None, factors, kept, settings.spec, torch.promote_types(factors.A.dtype, torch.float32))


def less_start(delta: Tensor, factors: Factors, kept: Tensor, saved: Tensor, settings: UpdateSettings) -> Tensor:
    """Return an update (out, n) less what it was at the start, in the entries that it keeps now.

    Args:
        delta: the update that the factors make, with `kept` (S,).
        saved: the start (3,), as `Start.saved` gave it.
    """
    with torch.no_grad():
        start = Start.of(saved)
        first = delta_of(first_factors(factors, start, settings), torch.full_like(kept, start.kept), settings)
    return delta - torch.where(delta.detach() != 0, first, 0)
