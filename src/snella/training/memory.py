"""Peak memory of a training step, in bytes.

On CUDA it is the allocator's peak over the training steps (validation does not count). Elsewhere there is no such
counter, and it is computed:

    saved + 4 · (all parameters) + 12 · (trainable parameters)          (fp32; frozen ones as they are kept)

`saved` is what one forward pass keeps for the backward pass, counted exactly: each storage that an operation of it met
and that is alive at its end counts once, with its full size; parameters, buffers and the batch do not count. The other
terms are weights in fp32, and for trainable ones the gradient and AdamW's two moments. Not in it: what exists only
during an operation, and what gradient checkpointing recomputes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves


class Storages(TorchDispatchMode):
    """Knows, without keeping it alive, each storage that an operation reads or makes while this is on.

    It stands below autograd, so it makes no difference where a tensor is kept afterwards: by autograd, on a `ctx`, by a
    module, a hook or a checkpoint. Tensors that come from outside PyTorch (NumPy) are met where they are first read.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bytes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            # a sparse tensor has no storage of its own: its parts have been met before
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided and leaf.device.type != "meta":
                for part in _parts(leaf):
                    storage = part.untyped_storage()
                    self._bytes[StorageWeakRef(storage)] = storage.nbytes()
        return result

    def alive(self, besides: Iterable[Tensor]) -> int:
        """Return the bytes of the storages still there, each once and whole, without those of the tensors given."""
        gc.collect()  # what only cycles hold on to would go at any moment
        outside = {StorageWeakRef(part.untyped_storage()) for tensor in besides for part in _parts(tensor)}
        return sum(size for ref, size in self._bytes.items() if ref not in outside and not ref.expired())


def step_bytes(model: nn.Module, saved: int) -> int:
    """Return the bytes of a training step that keeps `saved` bytes: with weights, gradients and AdamW's two moments."""
    return saved + weight_bytes(model) + 3 * sum(p.nbytes for p in model.parameters() if p.requires_grad)


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters, of those kept in fewer bits than their dtype says as they are kept."""
    return sum(part.nbytes for parameter in model.parameters() for part in _parts(parameter))


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that a tensor consists of: itself, or what a subclass with parts is made of."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _parts(getattr(tensor, name))
    else:
        yield tensor


class PeakMemory:
    """The highest memory of the training steps so far; see the top of this file for what counts."""

    def __init__(self, model: nn.Module, device: torch.device, so_far: int = 0) -> None:
        self.bytes = so_far
        self._model = model
        self._cuda = device if device.type == "cuda" else None
        self._measured = False

    @contextmanager
    def forward(self, batch: Iterable[Any]) -> Iterator[None]:
        """Watch a batch's forward pass; where nothing counts for us, the first one of a process is measured."""
        if self._cuda is not None or self._measured:
            yield
            return
        with Storages() as storages:
            yield
        self._measured = True
        tensors = (leaf for leaf in tree_leaves(list(batch)) if isinstance(leaf, Tensor))  # a prior's are nested
        saved = storages.alive((*tensors, *self._model.parameters(), *self._model.buffers()))
        self.bytes = max(self.bytes, step_bytes(self._model, saved))

    def restart(self) -> None:
        """Forget what came between two epochs, before the steps of the next."""
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)

    def step_done(self) -> None:
        """Measure after a training step."""
        if self._cuda is not None:
            self.bytes = max(self.bytes, torch.cuda.max_memory_allocated(self._cuda))
