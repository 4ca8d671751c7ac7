"""Intervals against scipy's bootstrap, and the weighted metrics against those that an evaluation finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, r2_score, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_jaccard_index

from snella.pages.intervals import (
    FEWEST,
    RESAMPLES,
    intervals,
    of_classes,
    of_labels,
    of_quantities,
    of_regions,
    resamples,
    rows_of,
)
from support.pages import class_outputs


def weights(count: int, seed: int = 1) -> np.ndarray:
    """Return how often each image is drawn."""
    return np.bincount(np.random.default_rng(seed).integers(count, size=count), minlength=count)


def repeated(drawn: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(drawn)), drawn)


def test_an_interval_of_accuracy_is_that_of_scipy():
    found = class_outputs(400).values
    right = (found["logits"].argmax(1) == found["labels"]).astype(float)
    ours = intervals(400, of_classes(found["logits"], found["labels"]))["top1"]
    theirs = bootstrap((right,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(0))
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.008)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.008)


def test_intervals_are_the_same_at_every_call_and_others_with_another_seed():
    found = class_outputs(50).values
    metrics = of_classes(found["logits"], found["labels"])
    assert intervals(50, metrics) == intervals(50, metrics) != intervals(50, metrics, seed=1)


def test_a_metric_that_is_never_defined_has_no_interval():
    assert intervals(5, lambda drawn: {"a": float("nan"), "b": 1.0}).keys() == {"b"}


def test_many_numbers_an_image_have_fewer_resamples():
    assert resamples(100) == RESAMPLES
    assert FEWEST < resamples(20_000, 20) < RESAMPLES
    assert resamples(1_000_000, 1000) == FEWEST


@pytest.mark.parametrize("drawn", [np.ones(80, int), weights(80)])
def test_metrics_of_classes_are_those_of_sklearn(drawn):
    found = class_outputs(80, 7).values
    logits, labels = (values[repeated(drawn)] for values in (found["logits"], found["labels"]))
    ours = of_classes(found["logits"], found["labels"])(drawn)
    assert ours["top1"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert ours["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(7)))
    assert ours["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))


@pytest.mark.parametrize("drawn", [np.ones(60, int), weights(60)])
def test_metrics_of_labels_are_those_of_sklearn(drawn):
    random = np.random.default_rng(0)
    found = random.random((60, 4)).round(1)  # with equal ones
    true = (random.random((60, 4)) < 0.4).astype(np.uint8)
    limits = [0.5, 0.3, 0.7, 0.55]
    ours = of_labels(found, true, limits)(drawn)
    shares, targets = found[repeated(drawn)], true[repeated(drawn)]
    assert ours["map"] == pytest.approx(average_precision_score(targets, shares, average="macro"))
    assert ours["ap:2"] == pytest.approx(average_precision_score(targets[:, 2], shares[:, 2]))
    assert ours["f1_micro"] == pytest.approx(f1_score(targets, shares >= limits, average="micro"))
    assert ours["f1_macro"] == pytest.approx(f1_score(targets, shares >= limits, average="macro"))


@pytest.mark.parametrize("drawn", [np.ones(40, int), weights(40)])
def test_metrics_of_quantities_are_those_of_sklearn(drawn):
    random = np.random.default_rng(0)
    true = random.normal(size=(40, 2)) * (3, 50)
    predicted = true + random.normal(size=(40, 2))
    ours = of_quantities(predicted, true, [3.0, 50.0])(drawn)
    told, known = predicted[repeated(drawn)], true[repeated(drawn)]
    error = np.abs(told - known).mean(0)
    assert ours["r2:1"] == pytest.approx(r2_score(known[:, 1], told[:, 1]))
    assert ours["r2"] == pytest.approx(r2_score(known, told))
    assert ours["mae:0"] == pytest.approx(error[0])
    assert ours["rmse:0"] == pytest.approx(np.sqrt(((told - known) ** 2).mean(0))[0])
    assert ours["standardised_mae"] == pytest.approx((error / (3, 50)).mean())


def test_metrics_of_masks_are_those_of_torchmetrics():
    random = np.random.default_rng(0)
    true, told = random.integers(0, 3, (2, 10, 12, 12))
    pairs = [(t[t == p], t, p) for t, p in zip(true, told, strict=True)]
    counts = np.stack([[np.bincount(x.ravel(), minlength=3) for x in pair] for pair in pairs])
    drawn = weights(10)
    ours = of_regions(counts)(drawn)
    pair = torch.from_numpy(told[repeated(drawn)]), torch.from_numpy(true[repeated(drawn)])
    theirs = multiclass_jaccard_index(*pair, num_classes=3, average=None)
    assert [ours[f"iou:{k}"] for k in range(3)] == pytest.approx(theirs.tolist())
    assert ours["miou"] == pytest.approx(theirs.mean().item())
    assert ours["pixel_accuracy"] == pytest.approx((pair[0] == pair[1]).float().mean().item())


def test_rows_of_classes_are_counted_from_logits():
    logits = np.array([[2, 0], [0, 2], [2, 0]], np.float32)
    confusion, rows = rows_of(("a", "b"), logits, np.array([0, 1, 1]))
    assert confusion.tolist() == [[1, 0], [1, 1]]
    assert [(row.count, row.recall, row.precision) for row in rows] == [(1, 1.0, 0.5), (2, 0.5, 1.0)]
