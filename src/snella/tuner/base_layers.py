"""The frozen base layers: the matrices that a weight is, the product that it makes, and the bits in which it is kept.

Linear ................ weight (out, in) ................... one matrix
transformers' Conv1D .. weight (in, out) ................... one, transposed
Conv1d, 2d, 3d ........ weight (out, in, *kernel) .......... one, (out, in · kernel)
in groups ............. weight (out, in / groups, *kernel) . one a group, (out / groups, in / groups · kernel)
depth-wise ............ weight (out, 1, *kernel) ........... one, (out, kernel): its columns mean the same to all
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from snella.errors import UserError
from snella.ops import FORMATS, Convolution, Linear, is_packed, pack, unpacked
from snella.tuner.targets import head_names

Convolutional = nn.Conv1d | nn.Conv2d | nn.Conv3d
BaseLayer = nn.Linear | Conv1D | nn.Conv1d | nn.Conv2d | nn.Conv3d


def out_first(base: BaseLayer, weight: Tensor) -> Tensor:
    """Return a weight of the layer's shape with the out axis first: a view (out, ...)."""
    return weight.mT if isinstance(base, Conv1D) else weight


def as_weight(base: BaseLayer, matrix: Tensor) -> Tensor:
    """Return the rows of matrices (out, n), or some of them, as a weight of the layer."""
    return matrix.mT if isinstance(base, Conv1D) else matrix.view(-1, *base.weight.shape[1:])


def matrices(base: BaseLayer) -> int:
    """Return the number of matrices that a layer has by itself."""
    return base.groups if isinstance(base, Convolutional) and base.weight.shape[1] > 1 else 1


def matrix_sizes(base: BaseLayer, name: str, fused_splits: Mapping[str, int]) -> tuple[int, int, int]:
    """Return how many matrices the layer called `name` has, and the rows and columns of each.

    Raises:
        UserError: `fused_splits` names a count that does not divide the layer's outputs.
    """
    weight, last_name = out_first(base, base.weight), name.rsplit(".", 1)[-1]
    own = matrices(base)
    splits = own if own > 1 else fused_splits.get(last_name, 1)
    if len(weight) % splits:
        raise UserError(f"{name} has {len(weight)} outputs, not divisible into fused_splits[{last_name!r}]={splits}")
    return splits, len(weight) // splits, weight[0].numel()


def is_hooked(module: nn.Module) -> bool:
    """Return whether a module's call does more than its class's forward: hooks, or offloaded weights (accelerate)."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def multiply(base: BaseLayer, x: Tensor, weight: Tensor, bias: bool = True) -> Tensor:
    """Return the base layer's output of x with another weight of its shape, with or without its bias."""
    if isinstance(base, Convolutional):
        return base._conv_forward(x, weight, base.bias if bias else None)  # knows padding modes
    return F.linear(x, weight.mT if isinstance(base, Conv1D) else weight, base.bias if bias else None)


def multiply_parts(base: BaseLayer, x: Tensor, weight: Tensor, splits: int, dropout: float) -> Iterator[Tensor]:
    """Yield what `splits` parts of the out axis of a weight make of x, without bias, each with a dropout of its own."""
    if matrices(base) > 1:  # groups see channels of their own: one product, and one draw
        yield from multiply(base, F.dropout(x, dropout), weight, bias=False).chunk(splits, dim=1)
        return
    for part in weight.chunk(splits, dim=1 if isinstance(base, Conv1D) else 0):
        yield multiply(base, F.dropout(x, dropout), part, bias=False)


def put_weight(base: BaseLayer, values: Tensor) -> None:
    """Put values in the place of a base layer's weight; as a new parameter where one of the two is packed."""
    if is_packed(values) or is_packed(base.weight):
        base.weight = nn.Parameter(values, requires_grad=False)
    else:
        base.weight.data = values


def split_padding(base: BaseLayer, x: Tensor) -> tuple[Tensor, Linear | Convolution, bool]:
    """Return x, padded where the convolution alone could not; the product; and whether x was padded."""
    if not isinstance(base, Convolutional):
        return x, Linear(), False
    call = Convolution(base.kernel_size, base.stride, (0,) * len(base.kernel_size), base.dilation, base.groups)
    if base.padding_mode == "zeros" and not isinstance(base.padding, str):
        return x, call._replace(padding=base.padding), False
    mode = "constant" if base.padding_mode == "zeros" else base.padding_mode
    return F.pad(x, base._reversed_padding_repeated_twice, mode=mode), call, True


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
