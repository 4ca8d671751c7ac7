"""What the training loop asks of a task's learner, of batches and of a method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

DeviceBatch = Mapping[str, Any]  # tensors whose first axis is the batch, and lists of what cannot be stacked


class Evaluation(Protocol):
    """What `Learner.evaluate` finds; tasks add tables and the like."""

    @property
    def metrics(self) -> dict[str, float]: ...


EvaluationT_co = TypeVar("EvaluationT_co", bound=Evaluation, covariant=True)


class DeviceBatches(Protocol):
    """The batches of an evaluation, on the model's device, and how many there are."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[DeviceBatch]: ...


class Learner(Protocol[EvaluationT_co]):
    """What is learnt. Batches are on the model's device."""

    @property
    def selection(self) -> str: ...  # the metric that chooses the best epoch

    @property
    def higher_is_better(self) -> bool: ...

    def loss(self, model: nn.Module, batch: DeviceBatch, /) -> Tensor: ...

    def evaluate(self, model: nn.Module, batches: DeviceBatches, /) -> EvaluationT_co: ...


class Batches(Protocol):
    """An epoch of batches, each a dict of tensors whose first one has the batch as its first axis.

    `epoch(number, skip)` gives the batches of epoch `number`, from 1, but for the first `skip`; the same ones in the
    same order at every call.
    """

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[dict[str, Any]]: ...


class AfterStep(Protocol):
    """The tuning method's part of a step: called after the optimiser's, with the gradients still in place.

    Gradients are unscaled and clipped; where fp16 overflowed they are not finite and the weights did not move.
    """

    def __call__(self, step: int) -> dict[str, Any] | None:
        """Move the budgets where it is time. `step` counts from 1.

        Returns the record that is written to allocation.jsonl where they moved: budget, kept and size by layer,
        skipped.
        """
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave; the tensors are on the training device."""
        ...
