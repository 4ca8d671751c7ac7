"""Calibration against torchmetrics and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from torchmetrics.functional.classification import multiclass_calibration_error

from snella.pages.calibration import (
    BINS,
    calibration_error,
    coverage,
    fitted_temperature,
    handed_over,
    probabilities,
    reliability,
)
from support.pages import class_outputs


@pytest.fixture(scope="module")
def found() -> dict[str, np.ndarray]:
    return class_outputs(600, 5).values


def test_probabilities_are_the_softmax(found):
    assert np.allclose(probabilities(found["logits"], 2.5), softmax(found["logits"].astype(float) / 2.5, axis=1))


def test_the_calibration_error_is_that_of_torchmetrics(found):
    shares = probabilities(found["logits"])
    bins = reliability(shares.max(1), shares.argmax(1) == found["labels"])
    theirs = multiclass_calibration_error(
        torch.from_numpy(shares), torch.from_numpy(found["labels"]), num_classes=5, n_bins=BINS, norm="l1"
    )
    assert calibration_error(bins) == pytest.approx(theirs.item(), abs=1e-6)
    assert sum(b.count for b in bins) == 600


@pytest.mark.parametrize("scale", [0.2, 1.0, 6.0])
def test_the_temperature_is_the_minimum_that_scipy_finds(found, scale):
    logits, labels = found["logits"] * scale, found["labels"]

    def cross_entropy(t: float) -> float:
        return -log_softmax(logits / np.exp(t), axis=1)[np.arange(len(labels)), labels].mean()

    found_there: Any = minimize_scalar(cross_entropy, bounds=(-3, 3), method="bounded", options={"xatol": 1e-6})
    theirs = np.exp(found_there.x)
    assert fitted_temperature(logits, labels) == pytest.approx(theirs, rel=1e-3)


def test_a_temperature_of_images_that_are_all_right_has_a_bound():
    assert fitted_temperature(np.eye(3, dtype=np.float32), np.arange(3)) == pytest.approx(0.05, rel=1e-6)


def test_the_surest_images_are_answered_first_and_equal_ones_together():
    confidence, right = np.array([0.9, 0.9, 0.8, 0.5]), np.array([True, False, True, False])
    curve = coverage(confidence, right)
    assert curve.threshold.tolist() == [0.9, 0.8, 0.5]
    assert curve.answered.tolist() == [0.5, 0.75, 1.0]
    assert curve.accuracy.tolist() == [0.5, 2 / 3, 0.5]
    assert handed_over(curve, 0.6) == (0.25, 0.8)
    assert handed_over(curve, 0.99) is None


def test_what_is_handed_over_leaves_the_accuracy_asked_for(found):
    shares = probabilities(found["logits"])
    confidence, right = shares.max(1), shares.argmax(1) == found["labels"]
    there = handed_over(coverage(confidence, right), 0.9)
    assert there is not None
    answered = confidence >= there[1]
    assert right[answered].mean() >= 0.9
    assert 1 - answered.mean() == pytest.approx(there[0])
