"""Rounds in turn, deadlines, and ratios by round."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from benchmarks.timing import Contender, interleaved, paired_ratio, train_step
from snella.errors import UserError


def test_rounds_run_all_in_turn_there_and_back() -> None:
    calls: list[str] = []
    samples = interleaved(
        {name: lambda name=name: calls.append(name) or len(calls) for name in "abc"}, warmup=1, rounds=2
    )

    assert "".join(calls) == "abccbaabc"
    assert samples == {"a": [6, 7], "b": [5, 8], "c": [4, 9]}


def test_a_deadline_leaves_two_rounds() -> None:
    samples = interleaved({"a": lambda: 0}, warmup=1, rounds=9, deadline=time.monotonic() - 1)
    assert samples == {"a": [0, 0]}


def test_ratio_pairs_what_ran_in_the_same_round() -> None:
    # the machine was ten times slower in the second round, and the method always took twice as long
    assert paired_ratio([2.0, 20.0, 4.0], [1.0, 10.0, 2.0]) == 2.0


def test_a_loss_that_is_not_finite_is_an_error(batch: tuple[Tensor, Tensor]) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.full((5,), torch.inf))

        def forward(self, images: Tensor) -> Tensor:
            return images.mean((1, 2, 3))[:, None] + self.bias

    model = Broken()
    contender = Contender("broken", model, torch.optim.AdamW(model.parameters()), after_step=None)
    with pytest.raises(UserError, match=r"loss of broken is not finite at step 1"):
        train_step(contender, *batch)
