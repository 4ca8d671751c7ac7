"""Frozen weights in fewer bits: which of a model's weights take part, and there and back."""

from __future__ import annotations

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from snella.errors import UserError
from snella.ops import FORMATS, is_packed, pack, unpacked
from snella.tuner.targets import head_names


def set_base_precision(model: nn.Module, precision: str) -> int:
    """Keep a model's weights of Linear and Conv2d layers, but the head's, as bf16, int8 or nf4; they are frozen then.

    Call it before the model is wrapped: what an adapter and the head train stays as it is. Evaluation and training see
    the rounded values, in the dtype that the weights had; to merge into a model with plain weights, set "fp32" first,
    which makes plain tensors of what is packed, rounded as it is. The model itself is changed.

    Args:
        model: plain, or wrapped where the precision is "fp32".
        precision: fp32, bf16, int8 or nf4.

    Returns:
        How many weights changed.

    Raises:
        UserError: unknown precision, or the model has an adapter already.
    """
    if precision not in ("fp32", *FORMATS):
        raise UserError(f"base precision {precision!r} is unknown; choose from fp32, {', '.join(FORMATS)}")
    packing = precision != "fp32"
    if packing and any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise UserError(f"the model has an adapter already; set its base precision {precision} before it is wrapped")
    heads = tuple(f"{name}." for name in head_names(model)) if packing else ()
    changed: dict[Tensor, nn.Parameter] = {}  # a weight that two layers share stays one
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d) or f"{name}.".startswith(heads or ("\0",)):
            continue
        weight = module.weight
        if weight is None or is_packed(weight) == packing:
            continue
        if weight not in changed:
            values = pack(weight, precision) if packing else unpacked(weight.data)
            changed[weight] = nn.Parameter(values, requires_grad=False)
        module.weight = changed[weight]
    return len(changed)
