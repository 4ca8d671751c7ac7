"""Inputs that a layer need not keep, because what they are made from is kept anyway.

The input of a linear layer is often the output of a normalisation or an activation, whose own backward pass keeps
*its* input. A forward hook on such modules notes on the output how it came about; the adapted layer then keeps that
recipe's tensors instead of the output and makes the output again, by the very same code, in its backward pass.

    LayerNorm ── x ── linear            kept: LayerNorm's input, by both
    linear ── z ── GELU ── x ── linear  kept: z, by both; with "mlp" z itself is made again, and neither keeps it

A note is only taken for what is certain to come out the same: no other hooks, no in-place operation, one tensor in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# Class names, with all that derive from them: timm and transformers have classes of their own.
RECOMPUTABLE = frozenset(
    {
        *("LayerNorm", "RMSNorm", "RmsNorm", "GELU", "SiLU"),
        *("GELUTanh", "QuickGELU", "Swish", "SimpleNorm"),  # timm
        *("GELUActivation", "QuickGELUActivation", "SiLUActivation", "NewGELUActivation"),  # transformers
    }
)
# Attributes of a tensor that hold a `_Note`: it may be made again for whom it is passed to, or only for an activation.
_SOURCE, _PRODUCT = "_snella_source", "_snella_product"


@dataclass
class Source:
    """How a tensor came about: recompute(*tensors) gives it again, to the bit."""

    tensors: tuple[Tensor, ...]
    recompute: Callable[..., Tensor]


@dataclass
class _Note:
    source: Source
    versions: tuple[int, int]  # of the output, and of what it was made from: in-place operations raise them


@dataclass
class _Once:
    """Makes a tensor again for the first of two who need it, and hands it to the second."""

    recompute: Callable[..., Tensor]
    value: Tensor | None = field(default=None, repr=False)

    def first(self, *tensors: Tensor) -> Tensor:
        self.value = self.recompute(*tensors)
        return self.value

    def second(self, *tensors: Tensor) -> Tensor:
        value, self.value = self.value, None
        return self.recompute(*tensors) if value is None else value


def source_of(x: Tensor) -> Source | None:
    """How x came about, if a note says so and still holds."""
    return _read(x, _SOURCE)


def note_product(y: Tensor, source: Source) -> None:
    """Note that y is a linear layer's output that an activation need not keep ("mlp")."""
    _write(y, _PRODUCT, source)


def _read(x: Tensor, name: str) -> Source | None:
    note = getattr(x, name, None)
    if not isinstance(note, _Note) or note.versions != (x._version, note.source.tensors[0]._version):
        return None
    return note.source


def _write(x: Tensor, name: str, source: Source) -> None:
    setattr(x, name, _Note(source, (x._version, source.tensors[0]._version)))


def recomputable(module: nn.Module) -> bool:
    """Whether a module is one whose output need not be kept."""
    return any(cls.__name__ in RECOMPUTABLE for cls in type(module).__mro__) and not list(module.children())


def watch(module: nn.Module) -> None:
    """Have the module note how its outputs come about."""
    if _remember not in module._forward_hooks.values():
        module.register_forward_hook(_remember)


def unwatch(module: nn.Module) -> None:
    """Undo `watch`."""
    for key, hook in list(module._forward_hooks.items()):
        if hook is _remember:
            del module._forward_hooks[key]


def _remember(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or len(args) != 1:
        return
    (x,) = args
    if not isinstance(x, Tensor) or not isinstance(output, Tensor) or not x.requires_grad:
        return
    # what other hooks or a replaced forward do cannot be repeated
    if len(module._forward_hooks) > 1 or module._forward_pre_hooks or "forward" in vars(module):
        return
    if getattr(module, "inplace", False) or output is x:
        return
    again = partial(_again, module, autocast_state(x.device.type))
    made = _read(x, _PRODUCT)
    once = None if made is None else _Once(made.recompute)
    if made is not None and once is not None and _let_go(output, made.tensors, once):
        _write(output, _SOURCE, Source(made.tensors, lambda *tensors: again(once.first(*tensors))))
    else:
        _write(output, _SOURCE, Source((x,), again))


def autocast_state(device_type: str) -> tuple[str, torch.dtype, bool]:
    """Device, dtype and whether autocast is on, as `torch.autocast` takes them."""
    return device_type, torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type)


def _again(module: nn.Module, autocast: tuple[str, torch.dtype, bool], x: Tensor) -> Tensor:
    with torch.no_grad(), torch.autocast(*autocast):
        return module.forward(x)


def _let_go(output: Tensor, tensors: tuple[Tensor, ...], once: _Once) -> bool:
    """Have the activation that made `output` not keep its input; False where it cannot be told to."""
    saved = getattr(output.grad_fn, "_raw_saved_self", None)
    if saved is None:
        return False
    try:
        saved.register_hooks(lambda _: tensors, lambda kept: once.second(*kept))
    except RuntimeError:  # others' hooks are there already: gradient checkpointing, or a count of saved tensors
        return False
    return True
