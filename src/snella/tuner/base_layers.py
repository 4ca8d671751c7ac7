"""The frozen base layers, Linear and Conv2d: the product that one makes, and the bits in which weights are kept."""

from __future__ import annotations

import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from snella.errors import UserError
from snella.ops import FORMATS, Convolution, Linear, is_packed, pack, unpacked
from snella.tuner.targets import head_names

BaseLayer = nn.Linear | nn.Conv2d


def is_hooked(module: nn.Module) -> bool:
    """Return whether a module's call does more than its class's forward: hooks, or offloaded weights (accelerate)."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def multiply(base: BaseLayer, x: Tensor, weight: Tensor, bias: bool = True) -> Tensor:
    """Return the base layer's output of x with another weight of its shape, with or without its bias."""
    if isinstance(base, nn.Conv2d):
        return base._conv_forward(x, weight, base.bias if bias else None)  # knows padding modes
    return F.linear(x, weight, base.bias if bias else None)


def put_weight(base: BaseLayer, values: Tensor) -> None:
    """Put values in the place of a base layer's weight; as a new parameter where one of the two is packed."""
    if is_packed(values) or is_packed(base.weight):
        base.weight = nn.Parameter(values, requires_grad=False)
    else:
        base.weight.data = values


def split_padding(base: BaseLayer, x: Tensor) -> tuple[Tensor, Linear | Convolution, bool]:
    """Return x, padded where the convolution alone could not; the product; and whether x was padded."""
    if isinstance(base, nn.Linear):
        return x, Linear(), False
    kernel = (base.kernel_size[0], base.kernel_size[1])
    if base.padding_mode == "zeros" and not isinstance(base.padding, str):
        return x, Convolution(kernel, base.stride, base.padding, base.dilation), False
    mode = "constant" if base.padding_mode == "zeros" else base.padding_mode
    x = F.pad(x, base._reversed_padding_repeated_twice, mode=mode)
    return x, Convolution(kernel, base.stride, (0, 0), base.dilation), True


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
