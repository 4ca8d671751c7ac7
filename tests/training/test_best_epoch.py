"""Which epoch is the best one, and when a training that gets no better ends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from snella.errors import UserError
from snella.training.loop import FitResult, Interrupted
from support.toy import SETTINGS, Classification, Metrics, interrupt_at, train


class Scripted(Classification):
    """A task whose validations score as told."""

    selection = "score"

    def __init__(self, scores: Iterable[float], higher_is_better: bool = True) -> None:
        self.scores = iter(scores)
        self.higher_is_better = higher_is_better

    def evaluate(self, model: nn.Module, batches: Any, /) -> Metrics:
        return Metrics({"score": next(self.scores)})


def result_of(folder: Path, scores: Sequence[float], *, higher: bool = True, patience: int = 0) -> FitResult:
    settings = replace(SETTINGS, epochs=len(scores), early_stopping=patience)
    return train(folder, settings=settings, task=Scripted(scores, higher))[1]


@pytest.mark.parametrize(
    ("scores", "higher", "best"),
    [
        ([0.1, 0.9, 0.4], True, 2),
        ([0.1, 0.9, 0.4], False, 1),
        ([0.9, 0.4, 0.9, 0.9, 0.2], True, 4),  # of equals the last
        ([0.4, 0.2, 0.2], False, 3),
        ([math.nan, 0.1, math.nan], True, 2),
        ([math.nan, math.inf, 0.1, math.nan], True, 3),
    ],
)
def test_the_best_epoch(scores, higher, best, tmp_path):
    result = result_of(tmp_path, scores, higher=higher)
    assert result.best_epoch == best
    assert result.epochs_done == len(scores)
    assert result.best_metric == pytest.approx(scores[best - 1], nan_ok=True)


@pytest.mark.parametrize(("scores", "kept"), [([0.9, 0.4], 2), ([0.9, 0.4, math.nan], 2)])
def test_the_last_epoch_of_a_finite_score_is_kept_where_that_is_asked_for(scores, kept, tmp_path):
    settings = replace(SETTINGS, epochs=len(scores), keep="last")
    result = train(tmp_path, settings=settings, task=Scripted(scores))[1]
    assert (result.best_epoch, result.best_metric) == (kept, scores[kept - 1])


def test_where_no_epoch_has_a_finite_score_none_is_the_best(tmp_path):
    with pytest.raises(UserError, match=r"^diverged: no epoch of .* has a finite score on val"):
        result_of(tmp_path, [math.nan, math.inf])


@pytest.mark.parametrize(
    ("scores", "patience", "done", "best"),
    [
        ([0.1, 0.9, 0.4, 0.4, 0.5, 1.0], 3, 5, 2),
        ([0.1, 1.0, 1.0, 1.0, 1.0, 1.0], 2, 4, 4),  # as good is no better, and does not go on for ever
        ([0.1, 0.2, 0.3, 0.4], 1, 4, 4),
    ],
)
def test_it_ends_when_it_gets_no_better(scores, patience, done, best, tmp_path):
    result = result_of(tmp_path, scores, patience=patience)
    assert (result.epochs_done, result.best_epoch) == (done, best)


def test_patience_goes_on_after_an_interruption(tmp_path):
    settings = replace(SETTINGS, epochs=6, early_stopping=3)
    with pytest.raises(Interrupted):
        train(tmp_path, settings=settings, task=Scripted([0.5, 0.4]), at_step=interrupt_at(8))
    result = train(tmp_path, settings=settings, task=Scripted([0.5, 0.5]), resume=True)[1]
    assert (result.epochs_done, result.best_epoch) == (4, 4)
