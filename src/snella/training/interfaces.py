"""What the training loop asks of a task, of batches and of a method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn


class Evaluation(Protocol):
    """What `Task.evaluate` gives; tasks add tables and the like."""

    @property
    def metrics(self) -> dict[str, float]: ...


class Task(Protocol):
    """What differs between tasks. Batches are dicts of tensors, already on the model's device."""

    @property
    def selection(self) -> str: ...  # the metric that chooses the best epoch

    @property
    def higher_is_better(self) -> bool: ...

    def loss(self, model: nn.Module, batch: dict[str, Tensor], /) -> Tensor: ...

    def evaluate(self, model: nn.Module, batches: Any, /) -> Evaluation: ...


class Batches(Protocol):
    """An epoch of batches, each a dict of tensors whose first one has the batch as its first axis.

    `epoch(number, skip)` gives the batches of epoch `number`, from 1, but for the first `skip`; the same ones in the
    same order at every call.
    """

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[dict[str, Tensor]]: ...


class AfterStep(Protocol):
    """The tuning method's part of a step: called after the optimiser's, with the gradients still in place.

    Gradients are unscaled and clipped; where fp16 overflowed they are not finite and the weights did not move.
    """

    def __call__(self, step: int) -> dict[str, Any] | None:
        """`step` counts from 1; a record is written to allocation.jsonl."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave; the tensors are on the training device."""
        ...
