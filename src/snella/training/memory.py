"""Peak memory of a training step, in bytes.

On CUDA it is the allocator's peak over the training steps (validation does not count). Elsewhere there is no such
counter, and it is computed:

    saved + 4 · (all parameters) + 12 · (trainable parameters)

`saved` is what one forward pass keeps for the backward pass, counted exactly: each storage that autograd saved and
that is alive at the end of the forward pass counts once, with its full size, and parameters do not count. The other
terms are weights in fp32, and for trainable ones the gradient and AdamW's two moments. Not in it: what exists only
during an operation, and what gradient checkpointing recomputes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef


class SavedTensors:
    """Counts the bytes that autograd keeps for the backward pass of what runs inside `with SavedTensors(model)`."""

    def __init__(self, model: nn.Module) -> None:
        self.bytes = 0
        self._parameters = {StorageWeakRef(p.untyped_storage()) for p in model.parameters()}
        # weak: a strong reference would keep alive what the forward pass itself lets go
        self._saved: dict[StorageWeakRef, int] = {}
        # detached: a hook that returns an operation's own output makes a reference cycle
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        if tensor.layout is not torch.strided:
            return tensor  # sparse: no storage to know it by, and few values
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference not in self._parameters:
            self._saved[reference] = storage.nbytes()
        return tensor.detach()

    def __enter__(self) -> SavedTensors:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
        self.bytes = sum(size for reference, size in self._saved.items() if not reference.expired())
        self._saved.clear()


class PeakMemory:
    """The highest memory of the training steps so far; see the top of this file for what counts."""

    def __init__(self, model: nn.Module, device: torch.device, so_far: int = 0) -> None:
        self.bytes = so_far
        self._model = model
        self._cuda = device if device.type == "cuda" else None
        self._measured = False

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around a forward pass; where nothing counts for us, the first one of a process is measured."""
        if self._cuda is not None or self._measured:
            yield
            return
        with SavedTensors(self._model) as saved:
            yield
        self._measured = True
        trainable = sum(p.numel() for p in self._model.parameters() if p.requires_grad)
        every = sum(p.numel() for p in self._model.parameters())
        self.bytes = max(self.bytes, saved.bytes + 4 * every + 12 * trainable)

    def restart(self) -> None:
        """Before the training steps of an epoch: forget what came in between."""
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)

    def step_done(self) -> None:
        """After a training step."""
        if self._cuda is not None:
            self.bytes = max(self.bytes, torch.cuda.max_memory_allocated(self._cuda))
