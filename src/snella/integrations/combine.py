"""Several trained adapters in one plain model: W + Σ weight · delta, or a merge by sign, in fp32 and rounded once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from snella.errors import UserError
from snella.tuner.base_layers import put_weight
from snella.tuner.layer import SnellaLayer
from snella.tuner.model import SnellaModel


@torch.no_grad()
def combine(
    model: PeftModel,
    adapters: Sequence[str],
    weights: Sequence[float] | None = None,
    modules_of: str | None = None,
    *,
    by_sign: bool = False,
) -> nn.Module:
    """Put a weighted sum of a model's SNELLA adapters into its weights; returns the plain model. `model` is used up.

    The sum of such updates is no such update, since what each keeps is in other places: it has no adapter's file. To go
    on with files, save each as a LoRA (`snella.save_as_lora`) and combine those by PEFT's `add_weighted_adapter`.

    Args:
        model: has the adapters, none of them merged.
        adapters: names of them.
        weights: what each update is multiplied by; None: 1. A trained bias or module is not multiplied.
        modules_of: the adapter whose modules_to_save (the head) the model gets; needed where several have them.
        by_sign: in place of the sum, entry by entry, what `merge_by_sign` makes of the weighted updates.

    Raises:
        UserError: an unknown adapter, weights that do not fit, several heads, biases that train, merged adapters.

    Example:
        >>> plain = combine(model, ["cats", "dogs"], [0.7, 0.3], modules_of="cats")  # doctest: +SKIP
    """
    tuner, weights = model.base_model, [1.0] * len(adapters) if weights is None else weights
    if not isinstance(tuner, SnellaModel):
        raise UserError(f"the model has no SNELLA adapters: its tuner is {type(tuner).__name__}")
    _check(tuner, adapters, weights)
    wrappers = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    owners = {id(wrapper): _owner(wrapper, adapters, modules_of) for wrapper in wrappers}
    for layer in tuner.adapted_layers():
        for name, weight in zip(adapters, weights, strict=True):
            layer.set_scale(name, weight)
        own, base = [name for name in adapters if name in layer.settings], layer.get_base_layer()
        if not own:
            continue
        update = merge_by_sign(map(layer.delta_matrices, own)) if by_sign else layer.sum_of_updates(own)
        if layer.tied:  # another layer, which has no part in this update, has the same weight
            base.weight = nn.Parameter(base.weight.data, requires_grad=False)
        put_weight(base, layer.add_update(base.weight, update))
    for wrapper in wrappers:
        owner = owners[id(wrapper)]
        if owner is None:
            wrapper.modules_to_save[wrapper.active_adapters[0]] = wrapper.original_module
        else:
            wrapper.set_adapter(owner)
    return tuner.unload()


def merge_by_sign(updates: Iterable[Tensor]) -> Tensor:
    """Return the mean, in each entry, of those of the updates that have the sign of their sum there; else 0.

    An entry that one update alone has stays as it is there, an entry that two have with opposite signs becomes the
    larger one's: TIES (arXiv 2306.01708, its steps two and three). The first step, cutting small entries off, is what
    the budgets have done.

    Args:
        updates: of one layer, all of one shape.
    """
    stacked = torch.stack([*updates])
    agree = (stacked.sign() == stacked.sum(dim=0).sign()) & (stacked != 0)
    return stacked.where(agree, 0).sum(dim=0) / agree.sum(dim=0).clamp(min=1)


def _check(tuner: SnellaModel, adapters: Sequence[str], weights: Sequence[float]) -> None:
    layers: list[SnellaLayer] = tuner.adapted_layers()
    known = {name for layer in layers for name in layer.settings}
    if not adapters or len(set(adapters)) < len(adapters):
        raise UserError(f"adapters={list(adapters)}: name each adapter once, of {', '.join(sorted(known))}")
    for name in adapters:
        if name not in known:
            raise UserError(f"the model has no adapter {name!r}; it has {', '.join(sorted(known))}")
        if tuner.peft_config[name].bias != "none":
            raise UserError(f"adapter {name!r} trains biases, which all adapters share: there is no sum of them")
    if len(weights) != len(adapters) or not all(map(math.isfinite, weights)):
        raise UserError(f"weights={list(weights)}: give a finite number for each of {len(adapters)} adapters")
    if merged := sorted({name for layer in layers for name in layer.merged_adapters}):
        raise UserError(f"{', '.join(merged)} is merged already; call unmerge_adapter() first")


def _owner(wrapper: ModulesToSaveWrapper, adapters: Sequence[str], modules_of: str | None) -> str | None:
    """Return the adapter whose module takes the place of the wrapper; None: the untrained one does."""
    have = [name for name in adapters if name in wrapper.modules_to_save]
    if modules_of in have or not have:
        return modules_of if have else None
    if len(have) > 1 or modules_of is not None:
        raise UserError(
            f"modules_of={modules_of!r}: a {type(wrapper.original_module).__name__} was trained as a whole by "
            f"{', '.join(have)}, and such modules have no sum; say whose is taken, as in modules_of={have[0]!r}"
        )
    return have[0]
