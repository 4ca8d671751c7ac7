"""Memory of a training step: what a forward pass leaves behind, and what the whole step needs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
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
                storage = leaf.untyped_storage()
                self._bytes[StorageWeakRef(storage)] = storage.nbytes()
        return result

    def alive(self, besides: Iterable[Tensor]) -> int:
        """Bytes of the storages that are still there, each once and whole, without those of the tensors given."""
        gc.collect()  # what only cycles hold on to would go at any moment
        outside = {StorageWeakRef(tensor.untyped_storage()) for tensor in besides}
        return sum(size for ref, size in self._bytes.items() if ref not in outside and not ref.expired())


def kept_bytes(forward: Callable[[], Tensor], model: nn.Module, batch: Iterable[Tensor]) -> int:
    """Bytes alive between a forward pass and its backward pass, wherever they are kept.

    Parameters and buffers of the model, the batch and the loss do not count.

    Args:
        forward: gives the loss, whose backward pass is not run.
        model: what `forward` runs, not used before: what it made in an earlier pass would be met as its own again.
        batch: the tensors that `forward` gives to the model.
    """
    with Storages() as storages:
        loss = forward()
    return storages.alive((loss, *batch, *model.parameters(), *model.buffers()))


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step, and the parameters behind them."""

    parameters: int  # how many
    trainable: int  # how many
    saved_bytes: int  # alive between the forward and the backward pass: `kept_bytes`
    total_bytes: int  # with the weights and, for trainable ones, the gradient and AdamW's two moments
    peak_bytes: int | None = None  # of CUDA's allocator over a whole step, weights included; None elsewhere


def step_memory(model: nn.Module, saved_bytes: int, peak_bytes: int | None = None) -> Memory:
    """The sum for a model in training; in fp32: saved + 4 · (all parameters) + 12 · (trainable parameters)."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return Memory(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in trainable),
        saved_bytes=saved_bytes,
        total_bytes=saved_bytes + weights + 3 * sum(p.numel() * p.element_size() for p in trainable),
        peak_bytes=peak_bytes,
    )
