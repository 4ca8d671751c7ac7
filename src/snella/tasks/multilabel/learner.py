"""Multi-label classification: loss, thresholds, metrics and predictions.

A batch is {"image": (b, 3, s, s), "target": (b, K) float32, 0 or 1}, on the model's device; K is the number of labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import RenderableType
from torch import Tensor, nn

from snella.distributed.part import part_of_mean
from snella.tasks.interface import KEPT, Prediction
from snella.tasks.multilabel.label_rows import (
    LabelRow,
    best_threshold,
    label_rows,
    label_table,
    labels_figure,
    labels_table,
)
from snella.tasks.whole_image import WholeImageLearner
from snella.training.interfaces import DeviceBatch, DeviceBatches

BOUND = 10.0  # of the weight of the images that have a label, and of its inverse


@dataclass(frozen=True)
class LabelEvaluation:
    """The result of `Multilabel.evaluate`."""

    metrics: dict[str, float]  # map, f1_micro, f1_macro: fractions from 0 to 1; loss: nats per image and label
    table: tuple[LabelRow, ...]
    best_thresholds: tuple[float, ...]  # of F1 on these images
    probabilities: Tensor  # (n, K) double
    targets: Tensor  # (n, K), 0 or 1


class Multilabel(WholeImageLearner[LabelEvaluation]):
    """Classification into any number of the named labels.

    The loss is the binary cross-entropy of each label, in which images that have it weigh as much as those that have
    it not, within a bound. What such a loss learns is more than the probability of a rare label: its odds are
    multiplied by the weight. `shift` takes that back, so that probabilities are those of the data.

    Args:
        classes: the K names.
        positive_weights: (K,) weights of the images that have a label; None: all 1.
        thresholds: probability from which on a label is told, of each; None: those of the best F1 on what is evaluated.
    """

    selection = "map"
    higher_is_better = True

    def __init__(
        self,
        classes: Sequence[str],
        *,
        positive_weights: Sequence[float] | None = None,
        thresholds: Sequence[float] | None = None,
    ) -> None:
        self.classes = tuple(classes)
        self.positive_weights = torch.tensor(positive_weights or [1.0] * len(self.classes))
        self.thresholds = thresholds

    @property
    def shift(self) -> Tensor:
        """Return what is added to logits (b, K) so that their sigmoids are the probabilities of the data, (K,)."""
        return -self.positive_weights.cpu().log()

    def cost(self, logits: Tensor, targets: DeviceBatch) -> Tensor:
        weights = self.positive_weights = self.positive_weights.to(logits.device)
        right = targets["target"].to(logits.dtype)
        return part_of_mean(F.binary_cross_entropy_with_logits(logits, right, pos_weight=weights), len(logits))

    def evaluate(self, model: nn.Module, batches: DeviceBatches) -> LabelEvaluation:
        """Return the metrics over all batches, without weights. The model is left in eval mode.

        map, the mean average precision, and f1_macro are means over the labels that some image has.

        Raises:
            UserError: there is no batch.
        """
        logits, targets = self.outputs(model, batches)
        probabilities = self.numbers(logits)
        best = tuple(best_threshold(*pair) for pair in zip(probabilities.T, targets.T, strict=True))
        thresholds = self.thresholds or best
        table = label_rows(self.classes, probabilities, targets, thresholds)
        there = [row for row in table if row.average_precision is not None]
        told = probabilities >= torch.tensor(thresholds)
        hits, sizes = int((told * targets).sum()), int(told.sum() + targets.sum())
        metrics = {
            "map": _mean([row.average_precision or 0.0 for row in there]),
            "f1_micro": 2 * hits / sizes if sizes else 0.0,
            "f1_macro": _mean([row.f1 or 0.0 for row in there]),
            "loss": F.binary_cross_entropy_with_logits(logits + self.shift, targets).item(),
        }
        return LabelEvaluation(metrics, table, best, probabilities, targets)

    def kept(self, evaluation: LabelEvaluation) -> dict[str, Tensor]:
        """Return probabilities and targets, (n, K) each."""
        if evaluation.probabilities.numel() > KEPT:
            return {}
        return {"probabilities": evaluation.probabilities, "targets": evaluation.targets.byte()}

    def settle(self, evaluation: LabelEvaluation) -> dict[str, Any]:
        """Take over the best thresholds of an evaluation on val, and return them."""
        self.thresholds = evaluation.best_thresholds
        return {"thresholds": list(self.thresholds)}

    def report(self, evaluation: LabelEvaluation) -> dict[str, Any]:
        """Return the table, as JSON holds it."""
        return {"labels": [asdict(row) for row in evaluation.table]}

    def table(self, evaluation: LabelEvaluation) -> RenderableType:
        return label_table(evaluation.table)

    def figures(self, evaluation: LabelEvaluation) -> dict[str, Callable[[Path], object]]:
        if all(row.average_precision is None for row in evaluation.table):
            return {}
        return {"labels": partial(labels_figure, evaluation.table)}

    def numbers(self, logits: Tensor) -> Tensor:
        """Return probabilities (b, K), in double: in fp32 those of sure labels are all 1."""
        return (logits.cpu().double() + self.shift).sigmoid()

    def prediction(self, name: str, numbers: list[float]) -> Prediction:
        thresholds = self.thresholds or [0.5] * len(self.classes)
        told = [label for label, p, least in zip(self.classes, numbers, thresholds, strict=True) if p >= least]
        return Prediction(
            {"image": name, "labels": told, "probabilities": dict(zip(self.classes, numbers, strict=True))}
        )

    def prediction_table(self, rows: Sequence[Mapping[str, Any]]) -> RenderableType:
        return labels_table(rows)

    def csv_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns image, labels (with semicolons between them), and `probability:NAME` for each label."""
        found = {"image": row["image"], "labels": ";".join(row["labels"])}
        return found | {f"probability:{name}": share for name, share in row["probabilities"].items()}


def positive_weights(targets: Tensor) -> list[float]:
    """Return the weights (K,) of the images that have a label: those without by those with it, within `BOUND`.

    Args:
        targets: (n, K), 0 or 1.
    """
    having = targets.sum(0)
    return ((len(targets) - having) / having.clamp(min=1)).clamp(1 / BOUND, BOUND).tolist()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
