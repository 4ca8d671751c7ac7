"""How sure a metric of a finite number of images is: percentile intervals of the bootstrap over images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from snella.compare.statistics import CONFIDENCE
from snella.tasks.classification.class_rows import ClassRow, class_rows

RESAMPLES = 1000
WORK = (
    200_000_000  # numbers that are looked at in all resamples of a split, as near as can be said; fewer resamples then
)
FEWEST = 100  # resamples
Weights = np.ndarray  # (n,) how often each image is in a resample


@dataclass(frozen=True)
class Bounds:
    """An interval of 95 %."""

    low: float
    high: float


def intervals(
    count: int, metrics: Callable[[Weights], Mapping[str, float]], *, cost: int = 1, seed: int = 0
) -> dict[str, Bounds]:
    """Return the percentile interval of each metric that is defined in at least one resample.

    Args:
        count: n, the number of images.
        metrics: (n,) how often each image counts -> metric -> value; NaN where it is not defined.
        cost: numbers an image that `metrics` looks at, where it is slow.
        seed: of the resamples.
    """
    random = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(resamples(count, cost)):
        weights = np.bincount(random.integers(count, size=count), minlength=count)
        for name, value in metrics(weights).items():
            found.setdefault(name, []).append(value)
    tail = 100 * (1 - CONFIDENCE) / 2
    with_values = {name: values for name, values in found.items() if not np.isnan(values).all()}
    return {name: Bounds(*np.nanpercentile(x, [tail, 100 - tail]).tolist()) for name, x in with_values.items()}


def resamples(count: int, cost: int = 1) -> int:
    """Return how many resamples `intervals` draws."""
    return min(RESAMPLES, max(FEWEST, WORK // max(count * cost, 1)))


# ---- metrics of weighted images, by task; values for weights of 1 are those of summary.json


def of_classes(logits: np.ndarray, labels: np.ndarray) -> Callable[[Weights], dict[str, float]]:
    """Return the metrics of a classification, of logits (n, K) and labels (n,)."""
    classes = logits.shape[1]
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    first, five = logits.argmax(1) == labels, (logits > own).sum(1) < min(5, classes)

    def metrics(weights: Weights) -> dict[str, float]:
        true = np.bincount(labels, weights, classes)
        recalls = np.bincount(labels[first], weights[first], classes)[true > 0] / true[true > 0]
        total = weights.sum()
        return {
            "top1": float(weights @ first / total),
            "top5": float(weights @ five / total),
            "balanced_accuracy": float(recalls.mean()),
        }

    return metrics


def of_regions(counts: np.ndarray) -> Callable[[Weights], dict[str, float]]:
    """Return the metrics of a segmentation, of counts (n, 3, K), with `iou:k` of each class."""
    flat, shape = counts.reshape(len(counts), -1).astype(np.float64), counts.shape[1:]

    def metrics(weights: Weights) -> dict[str, float]:
        met, true, told = (weights @ flat).reshape(shape)
        with np.errstate(invalid="ignore"):
            iou, dice = met / (true + told - met), 2 * met / (true + told)
        there = true + told > 0
        return {
            "miou": _mean(iou[there]),
            "mdice": _mean(dice[there]),
            "pixel_accuracy": float(met.sum() / true.sum()) if true.sum() else np.nan,
            **{f"iou:{k}": float(value) for k, value in enumerate(iou)},
        }

    return metrics


def of_quantities(
    predicted: np.ndarray, true: np.ndarray, std: Sequence[float]
) -> Callable[[Weights], dict[str, float]]:
    """Return the metrics of a regression, of values (n, K): means over the quantities, and each one's by `mae:k` ...

    Args:
        std: deviation of each quantity in train.
    """
    error = predicted - true

    def metrics(weights: Weights) -> dict[str, float]:
        total = weights.sum()
        mae, square = weights @ np.abs(error) / total, weights @ error**2 / total
        spread = weights @ true**2 / total - (weights @ true / total) ** 2
        with np.errstate(invalid="ignore", divide="ignore"):
            r2 = np.where(spread > 0, 1 - square / spread, np.nan)
        each = {"mae": mae, "rmse": np.sqrt(square), "r2": r2}
        return {
            "standardised_mae": float((mae / np.asarray(std)).mean()),
            **{name: _mean(values) for name, values in each.items()},
            **{f"{name}:{k}": float(x) for name, values in each.items() for k, x in enumerate(values)},
        }

    return metrics


def of_labels(
    probabilities: np.ndarray, targets: np.ndarray, thresholds: Sequence[float]
) -> Callable[[Weights], dict[str, float]]:
    """Return the metrics of a multi-label classification, of probabilities and targets (n, K), with `ap:k` of each."""
    told, true = probabilities >= np.asarray(thresholds), targets.astype(bool)
    order = np.argsort(-probabilities, axis=0, kind="stable")
    ordered = np.take_along_axis(true, order, axis=0)
    values = np.take_along_axis(probabilities, order, axis=0)
    last = np.vstack([values[1:] < values[:-1], np.ones((1, true.shape[1]), bool)])  # of equal ones

    def metrics(weights: Weights) -> dict[str, float]:
        count, hits = weights @ true, weights @ (told & true)
        sizes = weights @ told + count
        there = count > 0
        average = np.array([
            _average_precision(weights[order[:, k]], ordered[:, k], last[:, k]) if there[k] else np.nan
            for k in range(true.shape[1])
        ])  # fmt: skip
        with np.errstate(invalid="ignore"):
            f1 = np.where(sizes > 0, 2 * hits / sizes, 0.0)
        return {
            "map": _mean(average[there]),
            "f1_micro": float(2 * hits.sum() / sizes.sum()) if sizes.sum() else 0.0,
            "f1_macro": _mean(f1[there]),
            **{f"ap:{k}": float(value) for k, value in enumerate(average)},
        }

    return metrics


def _average_precision(weights: np.ndarray, true: np.ndarray, last: np.ndarray) -> float:
    """Return the average precision of images in the order of their probabilities; `last` marks the last of equals."""
    hits, told = np.cumsum(weights * true)[last], np.cumsum(weights)[last]
    steps = np.diff(hits, prepend=0)
    return float((steps * hits / np.maximum(told, 1)).sum() / hits[-1])


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def rows_of(classes: Sequence[str], logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, tuple[ClassRow, ...]]:
    """Return the confusion matrix (K, K), true class x predicted class, and the row of each class."""
    size = len(classes)
    confusion = np.bincount(labels * size + logits.argmax(1), minlength=size * size).reshape(size, size)
    return confusion, class_rows(classes, torch.from_numpy(confusion))
