"""Evaluating a model on batches: the same for the epochs of a training and for a finished one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from torch import Tensor, nn

from snella.distributed.evaluation import divided_evaluation
from snella.training.interfaces import Batches, Evaluation, Learner

EvaluationT = TypeVar("EvaluationT", bound=Evaluation)


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the batch on the device; on the CPU with images (b, c, h, w) channels last: convolutions are faster so.

    CUDA is not waited for: what the loader gives is in pinned memory.
    """
    moved: Any = send_to_device(batch, device, non_blocking=device.type == "cuda")
    return {name: _channels_last(value) for name, value in moved.items()} if device.type == "cpu" else moved


def _channels_last(value: Any) -> Any:
    images = isinstance(value, Tensor) and value.ndim == 4
    return value.contiguous(memory_format=torch.channels_last) if images else value


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
    learner: Learner[EvaluationT],
    batches: Batches,
    accelerator: Accelerator,
    *,
    seed: int = 0,
    seen: Callable[[int, int], None] | None = None,
) -> EvaluationT:
    """Return what the learner finds in evaluation mode, without gradients and in the accelerator's precision.

    Args:
        accelerator: of the command; the model is moved to its device.
        seed: tasks that draw (noise) draw the same at each call.
        seen: called after each batch with (batches done, batches in all).
    """
    model.to(accelerator.device)
    model.eval()
    seed_step(seed, 0)
    start = getattr(batches, "start", None)  # of a block of the images, where processes divide them
    divided = nullcontext() if start is None else divided_evaluation(start)
    with divided, torch.no_grad(), accelerator.autocast():
        return learner.evaluate(model, OnDevice(batches, accelerator.device, seen))
