"""The product that a base layer, a Linear or Conv2d, makes of its input: with another weight, or as `ops` takes it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from snella.ops import Convolution, Linear

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
