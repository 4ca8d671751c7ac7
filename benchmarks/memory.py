"""Memory of a training step: what a forward pass leaves behind, and what the whole step needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from snella.training.memory import Storages, step_bytes


def kept_bytes(forward: Callable[[], Tensor], model: nn.Module, batch: Iterable[Tensor]) -> int:
    """Count the bytes alive between a forward pass and its backward pass, wherever they are kept.

    Parameters and buffers of the model, the batch and the loss do not count.

    Args:
        forward: computes the loss, whose backward pass is not run.
        model: the model that `forward` runs, unused so far: what an earlier pass left in it would not be counted.
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
    """Return the memory of a model's training step as `step_bytes` computes it, with its parts."""
    return Memory(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        saved_bytes=saved_bytes,
        total_bytes=step_bytes(model, saved_bytes),
        peak_bytes=peak_bytes,
    )
