"""Evaluating a model on batches: the same for the epochs of a training and for a finished one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from snella.training.devices import on_device
from snella.training.interfaces import Batches, Task


class OnDevice:
    """The batches of an evaluation on a device, one after the other; `seen` is told how many are done of how many."""

    def __init__(self, batches: Batches, device: torch.device, seen: Callable[[int, int], None] | None = None) -> None:
        self._batches = batches
        self._device = device
        self._seen = seen

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        for done, batch in enumerate(self._batches.epoch(1), start=1):
            yield on_device(batch, self._device)
            if self._seen is not None:
                self._seen(done, len(self))


def seed_step(seed: int, step: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators, on all devices, by a hash of (seed, step).

    The loop does it before each step, counted from 1, so a checkpoint needs no generator states; evaluations are
    step 0.
    """
    set_seed(int(np.random.SeedSequence((seed, step)).generate_state(1)[0]))


def evaluate(
    model: nn.Module,
    task: Task,
    batches: Batches,
    accelerator: Accelerator,
    *,
    seed: int = 0,
    seen: Callable[[int, int], None] | None = None,
) -> Any:
    """What `task.evaluate` finds, in evaluation mode, without gradients and in the accelerator's precision.

    Args:
        accelerator: from `accelerator_for`; the model is moved to its device.
        seed: tasks that draw (noise) draw the same at each call.
        seen: called after each batch with (batches done, batches in all).
    """
    model.to(accelerator.device)
    model.eval()
    seed_step(seed, 0)
    with torch.no_grad(), accelerator.autocast():
        return task.evaluate(model, OnDevice(batches, accelerator.device, seen))
