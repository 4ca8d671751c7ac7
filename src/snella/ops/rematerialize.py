"""Inputs that a layer need not keep, because what they are made from is kept anyway.

The input of a linear layer is often the output of a normalisation or an activation, whose own backward pass keeps
*its* input. A forward hook on such modules notes of the output how it came about; the adapted layer then keeps that
recipe's tensors instead of the output and makes the output again, by the very same code, in its backward pass.

    LayerNorm ── x ── linear            kept: LayerNorm's input, by both
    linear ── z ── GELU ── x ── linear  kept: z, by both; with "mlp" z itself is made again, and neither keeps it
    a · GELU(b) ── x ── linear          kept: a and b, by the product and GELU; GELU(b), too, is made again

A note is only taken of what is certain to come out the same: a known class, no other hooks, no in-place operation,
no hooks on saved tensors (gradient checkpointing), one tensor in, which the graph keeps anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.weak import WeakTensorKeyDictionary

# Classes whose output depends on their input and parameters alone, by name, in these packages.
PACKAGES = ("torch", "timm", "transformers", "diffusers")
RECOMPUTABLE = frozenset(
    {
        *("LayerNorm", "RMSNorm", "GELU", "SiLU"),
        *("LayerNorm2d", "LayerNormFp32", "LayerNorm2dFp32", "RmsNorm", "RmsNorm2d", "SimpleNorm"),  # timm
        *("GELUTanh", "QuickGELU", "Swish"),  # timm
        *("GELUActivation", "QuickGELUActivation", "SiLUActivation", "NewGELUActivation"),  # transformers
    }
)


@dataclass(frozen=True)
class Source:
    """How a tensor came about: recompute(*tensors) gives it again, to the bit."""

    tensors: tuple[Tensor, ...]
    recompute: Callable[..., Tensor]


@dataclass(frozen=True)
class _Note:
    source: Source
    versions: tuple[int, ...]  # of the output and what it was made from: in-place operations raise them


@dataclass
class _SharedRecompute:
    """Makes a tensor again for the first of two who need it, and hands it to the second."""

    recompute: Callable[..., Tensor]
    value: Tensor | None = field(default=None, repr=False)

    def make(self, *tensors: Tensor) -> Tensor:
        """Return the tensor, made from these, and keep it."""
        self.value = self.recompute(*tensors)
        return self.value

    def take(self, *tensors: Tensor) -> Tensor:
        """Return the kept tensor and let it go, or make one where none is kept."""
        value, self.value = self.value, None
        return self.recompute(*tensors) if value is None else value


# Notes by tensor: it may be made again for whom it is passed to, or (a layer's output) only for an activation.
_sources, _products = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()


def source_of(x: Tensor) -> Source | None:
    """Return how x came about, if a note says so and still holds, or the graph does (gated linear units); else None."""
    return _read_note(_sources, x) or _gated_source(x)


def note_product(y: Tensor, source: Source) -> None:
    """Note that y is a linear layer's output that an activation need not keep ("mlp")."""
    _write_note(_products, y, source)


def _read_note(notes: WeakTensorKeyDictionary, x: Tensor) -> Source | None:
    note = notes.get(x)
    if note is None or _saved_tensors_are_hooked():
        return None
    return note.source if note.versions == _versions(x, note.source) else None


def _write_note(notes: WeakTensorKeyDictionary, x: Tensor, source: Source) -> None:
    notes[x] = _Note(source, _versions(x, source))


def _versions(x: Tensor, source: Source) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in (x, *source.tensors))


def recomputable(module: nn.Module) -> bool:
    """Return whether a module is one whose output can be made again from its input."""
    kind = type(module)
    known = kind.__name__ in RECOMPUTABLE and kind.__module__.partition(".")[0] in PACKAGES
    return known and not module._modules and "forward" not in vars(module) and not getattr(module, "inplace", False)


def watch(module: nn.Module) -> None:
    """Have the module note how its outputs come about."""
    if _note_output not in module._forward_hooks.values():
        module.register_forward_hook(_note_output, with_kwargs=True)


def unwatch(module: nn.Module) -> None:
    """Undo `watch`."""
    for key, hook in list(module._forward_hooks.items()):
        if hook is _note_output:
            del module._forward_hooks[key]
            module._forward_hooks_with_kwargs.pop(key, None)


def is_transformed() -> bool:
    """Return whether the code runs inside a transform of torch.func, whose tensors have no storage."""
    functorch: Any = torch._C._functorch  # type: ignore[attr-defined]
    return functorch.peek_interpreter_stack() is not None


def _note_output(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    if torch.compiler.is_compiling() or is_transformed() or not torch.is_grad_enabled() or len(args) != 1 or kwargs:
        return
    (x,) = args
    if not isinstance(x, Tensor) or not isinstance(output, Tensor) or not x.requires_grad or output is x:
        return
    others = len(module._forward_hooks) > 1 or module._forward_pre_hooks
    if others or torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return  # what they do cannot be repeated
    if not recomputable(module) or _saved_tensors_are_hooked() or not _is_saved(x, output):
        return
    names = tuple(name for name, value in (*module._parameters.items(), *module._buffers.items()) if value is not None)
    values = tuple(getattr(module, name) for name in names)  # not the module's own under functional_call
    recompute = partial(_recompute_module, module, names, autocast_state(x.device.type))
    made = _read_note(_products, x)
    shared = None if made is None else _SharedRecompute(made.recompute)
    if made is not None and shared is not None and not names and _release_input(output, x, made.tensors, shared):
        _write_note(_sources, output, Source(made.tensors, partial(_recompute_through, recompute, shared)))
    else:
        _write_note(_sources, output, Source((x, *values), recompute))


def _saved_tensors_are_hooked() -> bool:
    """Return whether a checkpoint, or others, have a say in what is saved.

    A checkpoint's second forward pass would not find the notes of the first, and put other tensors in their places.
    """
    autograd: Any = torch._C._autograd  # type: ignore[attr-defined]
    if hasattr(autograd, "_top_saved_tensors_default_hooks"):
        return autograd._top_saved_tensors_default_hooks(True) is not None
    # PyTorch 2.6 does not say; but a tensor that is saved under hooks takes no others
    node: Any = torch.zeros((), requires_grad=True).exp().grad_fn
    try:
        node._raw_saved_result.register_hooks(_identity, _identity)
    except RuntimeError:
        return True
    return False


def _identity(saved: Tensor) -> Tensor:
    return saved


def _is_saved(x: Tensor, output: Tensor) -> bool:
    """Return whether some node between x and output keeps x for its backward pass."""
    storage = x.untyped_storage()._cdata
    nodes: list[Any] = [output.grad_fn]
    for _ in range(16):  # more than any of the classes above needs
        if not nodes:
            return False
        node = nodes.pop(0)
        for name in ("_saved_self", "_saved_input", "_saved_other", "_saved_mat1"):
            saved = getattr(node, name, None)
            if isinstance(saved, Tensor) and saved.dtype == x.dtype and saved.untyped_storage()._cdata == storage:
                return True
        nodes += [parent for parent, _ in node.next_functions if parent is not None and parent is not x.grad_fn]
    return False


def autocast_state(device_type: str) -> tuple[str, torch.dtype, bool]:
    """Return device, dtype and whether autocast is on, as `torch.autocast` takes them."""
    return device_type, torch.get_autocast_dtype(device_type), torch.is_autocast_enabled(device_type)


def _recompute_module(
    module: nn.Module, names: tuple[str, ...], autocast: tuple[str, torch.dtype, bool], x: Tensor, *values: Tensor
) -> Tensor:
    with torch.no_grad(), torch.autocast(*autocast):
        if not names:
            return module.forward(x)
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))


def _recompute_through(recompute: Callable[[Tensor], Tensor], shared: _SharedRecompute, *tensors: Tensor) -> Tensor:
    return recompute(shared.make(*tensors))


def _release_input(output: Tensor, x: Tensor, tensors: tuple[Tensor, ...], shared: _SharedRecompute) -> bool:
    """Have the activation that made `output` not keep its input x; False where it cannot be told to."""
    node: Any = output.grad_fn
    if getattr(node, "_saved_self", None) is not x:
        return False  # its last operation keeps something else
    detached = tuple(tensor.detach() for tensor in tensors)
    node._raw_saved_self.register_hooks(lambda _: detached, lambda kept: shared.take(*kept))
    return True


def _gated_source(x: Tensor) -> Source | None:
    """Return of x = a · act(b) the recipe: a, and what act(b) is made from; the product no longer keeps act(b).

    Any module may hold the product, so it is read from the graph, right behind the product: of diffusers' GEGLU, of
    timm's SwiGLU and GluMlp.
    """
    node: Any = x.grad_fn
    if type(node).__name__ != "MulBackward0" or x._version or _saved_tensors_are_hooked():
        return None
    sides = [(_saved_tensor(node, name), name) for name in ("self", "other")]
    for (act, name), (a, _) in (sides, sides[::-1]):
        if act is None or a is None or act._version or not act.shape == a.shape == x.shape:
            continue
        if not act.dtype == a.dtype == x.dtype:
            continue
        made = _read_note(_sources, act) or _activation_source(act)
        if made is None:
            continue
        shared, kept = _SharedRecompute(made.recompute), tuple(tensor.detach() for tensor in made.tensors)
        getattr(node, f"_raw_saved_{name}").register_hooks(lambda _: kept, lambda kept: shared.take(*kept))  # noqa: B023
        source = Source((a, *made.tensors), partial(_recompute_product, shared))
        _write_note(_sources, x, source)
        return source
    return None


def _activation_source(act: Tensor) -> Source | None:
    """Return of act = gelu(b) or silu(b), by whatever called it, the recipe of b, which the activation keeps."""
    node: Any = act.grad_fn
    b = _saved_tensor(node, "self")
    if b is None or b.shape != act.shape or b.dtype != act.dtype:
        return None
    if type(node).__name__ == "GeluBackward0":
        return Source((b,), partial(_without_graph, partial(F.gelu, approximate=node._saved_approximate)))
    if type(node).__name__ == "SiluBackward0":
        return Source((b,), partial(_without_graph, F.silu))
    return None


def _saved_tensor(node: Any, name: str) -> Tensor | None:
    """Return what a node keeps under a name, unless hooks have a say in it: asking for it could run a checkpoint."""
    raw = getattr(node, f"_raw_saved_{name}", None)
    if raw is None or getattr(raw, "unpack_hook", True) is not None:  # torch that cannot tell: as if hooked
        return None
    try:
        return getattr(node, f"_saved_{name}")
    except RuntimeError:  # changed in place since; the backward pass will say so
        return None


def _recompute_product(shared: _SharedRecompute, a: Tensor, *tensors: Tensor) -> Tensor:
    return _without_graph(torch.mul, a, shared.make(*tensors))


def _without_graph(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    with torch.no_grad():
        return function(*tensors)
