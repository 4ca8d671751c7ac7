"""Time of training steps and of evaluation, of several methods in turn."""

from __future__ import annotations

import copy
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.methods import METHODS
from snella.errors import UserError, short_reason
from snella.training.interfaces import AfterStep
from snella.training.optimiser import adamw

MIN_ROUNDS = 2  # that are measured, however long they take

T = TypeVar("T")
Failures = dict[str, str]  # method -> why it could not be measured, in a line


@dataclass(frozen=True)
class StepTime:
    """Seconds of one training step."""

    forward_backward: float
    step: float  # with the optimiser's step and the allocation of budgets


@dataclass
class Contender:
    """A method's model in training, with its optimiser and the steps that it has done."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    after_step: AfterStep | None
    steps: int = 0

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.model(images).float(), labels)


def make_contender(name: str, base: nn.Module, *, r: int, device: torch.device, dtype: torch.dtype) -> Contender:
    """Wrap a copy of the base model by the method, in training mode and with all weights in the dtype."""
    method = METHODS[name]
    model = method.wrap(copy.deepcopy(base), r).to(device, dtype).train()
    return Contender(
        name=name,
        model=model,
        optimizer=adamw(model, lr=1e-4, weight_decay=0.05, eps=1e-8),
        after_step=method.after_step(model) if method.after_step is not None else None,
    )


def train_step(contender: Contender, images: Tensor, labels: Tensor) -> StepTime:
    """Make one step as a training loop does, and time it.

    Raises:
        UserError: the loss is not finite, so that the step did not do the usual work.
    """
    synchronize(images.device)
    start = time.perf_counter()
    loss = contender.loss(images, labels)
    loss.backward()
    synchronize(images.device)
    middle = time.perf_counter()
    contender.steps += 1
    contender.optimizer.step()
    if contender.after_step is not None:
        contender.after_step(contender.steps)
    contender.optimizer.zero_grad(set_to_none=True)
    synchronize(images.device)
    end = time.perf_counter()
    if not math.isfinite(loss.item()):
        raise UserError(f"the loss of {contender.name} is not finite at step {contender.steps}")
    return StepTime(forward_backward=middle - start, step=end - start)


@torch.no_grad()
def evaluation_time(model: nn.Module, images: Tensor) -> float:
    """Time a forward pass, in seconds; the model is in evaluation mode."""
    synchronize(images.device)
    start = time.perf_counter()
    model(images)
    synchronize(images.device)
    return time.perf_counter() - start


def interleaved(
    runs: Mapping[str, Callable[[], T]],
    *,
    warmup: int,
    rounds: int,
    deadline: float = math.inf,
    say: Callable[[str], None] = lambda text: None,
    failed: Failures | None = None,
) -> dict[str, list[T]]:
    """Call each run once a round and return what it gave in the rounds that are measured.

    A round takes all in turn, and the next one in the opposite order, so that what else the machine does falls on all
    alike. After `deadline` (of `time.monotonic`) no round begins, but two are measured in any case. Where `failed` is
    given, a run that fails is noted there and left out, and the others go on.
    """
    samples: dict[str, list[T]] = {name: [] for name in runs}
    for i in range(warmup + rounds):
        if i >= warmup + MIN_ROUNDS and time.monotonic() > deadline:
            break
        say(f"round {i + 1} of {warmup + rounds}")
        for name in list(samples)[:: 1 if i % 2 == 0 else -1]:
            with noting(failed, name):
                sample = runs[name]()
                if i >= warmup:
                    samples[name].append(sample)
            if failed and name in failed:
                del samples[name]
    return samples


@contextmanager
def noting(failed: Failures | None, name: str) -> Iterator[None]:
    """Note in `failed`, where it is given, why what is inside failed (no memory left, for one), and go on behind it."""
    try:
        yield
    except Exception as error:
        if failed is None:
            raise
        failed[name] = short_reason(error)
    else:
        return
    gc.collect()  # behind the handler: the error's frames held tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def paired_ratio(times: list[float], reference: list[float]) -> float:
    """Return the median over the rounds of a method's time by another's in the same round."""
    return median(time / other for time, other in zip(times, reference, strict=True))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
