"""Whether probabilities are to be believed: calibration error, temperature, and accuracy by how many are answered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15  # of confidence, of equal width
HOTTEST = 20.0  # temperature, and its inverse the coldest
STEPS = 60  # of the search for the temperature, each of which halves its interval
FITTED = 2_000_000  # numbers of logits that a temperature is fitted to, at most


@dataclass(frozen=True)
class Bin:
    """Images whose confidence is in one of the bins."""

    count: int
    confidence: float  # the mean
    accuracy: float


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the softmax of logits (n, K) divided by a temperature, in double."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(1, keepdims=True)
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(1, keepdims=True)
    return scaled


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[Bin]:
    """Return the bins that have images, by confidence (n,); `right` (n,) says whether an image is."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts, sums, hits = (np.bincount(place, weights, BINS) for weights in (None, confidence, right))
    return [Bin(int(counts[i]), sums[i] / counts[i], hits[i] / counts[i]) for i in np.flatnonzero(counts)]


def calibration_error(bins: list[Bin]) -> float:
    """Return the expected calibration error: how far confidence and accuracy are apart in the mean over the images."""
    return sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / sum(b.count for b in bins)


def fitted_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature of the least cross-entropy of logits (n, K), between 0.05 and 20.

    The cross-entropy is convex in the inverse of the temperature; its derivative, the mean logit under the
    probabilities less that of the label, is 0 there.
    """
    most = max(1, FITTED // logits.shape[1])
    logits, labels = logits[:most].astype(np.float64), labels[:most]
    own = np.take_along_axis(logits, labels[:, None], axis=1).mean()
    low, high = 1 / HOTTEST, HOTTEST  # of the inverse
    for _ in range(STEPS):
        middle = (low + high) / 2
        slope = (probabilities(logits, 1 / middle) * logits).sum(1).mean() - own
        low, high = (middle, high) if slope < 0 else (low, middle)
    return 2 / (low + high)


@dataclass(frozen=True)
class Coverage:
    """Images in the order of confidence, the surest first; equal ones are answered together."""

    threshold: np.ndarray  # (m,) the confidence of the last that is answered
    answered: np.ndarray  # (m,) the share of the images up to it
    accuracy: np.ndarray  # (m,) of those


def coverage(confidence: np.ndarray, right: np.ndarray) -> Coverage:
    """Return how accurate the surest images are, by how many of them are answered."""
    order = np.argsort(-confidence, kind="stable")
    ordered, hits = confidence[order], np.cumsum(right[order])
    last = np.append(ordered[1:] < ordered[:-1], True)
    count = np.arange(1, len(order) + 1)[last]
    return Coverage(ordered[last], count / len(order), hits[last] / count)


def handed_over(found: Coverage, accuracy: float) -> tuple[float, float] | None:
    """Return the share of images to hand to a person so that those answered are so accurate, and the threshold.

    None where not even the surest are.
    """
    enough = np.flatnonzero(found.accuracy >= accuracy)
    if not len(enough):
        return None
    return 1 - float(found.answered[enough[-1]]), float(found.threshold[enough[-1]])
