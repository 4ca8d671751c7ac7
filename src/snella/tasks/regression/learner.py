"""Regression: loss, metrics and predictions.

A batch is {"image": (b, 3, s, s), "target": (b, K) float32, in units of the data}, on the model's device; K is the
number of quantities. The model gives them standardised.
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
from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score
from torchmetrics.functional.classification import multiclass_cohen_kappa

from snella.distributed.part import part_of_mean
from snella.errors import UserError
from snella.tasks.interface import KEPT, Prediction
from snella.tasks.regression.scatter import scatter_figure, targets_table, values_table
from snella.tasks.whole_image import WholeImageLearner
from snella.training.interfaces import DeviceBatch, DeviceBatches

MOST_LEVELS = 10  # different values in train up to which a quantity is one of levels
IMAGES_PER_LEVEL = 3  # in the mean, at least


@dataclass(frozen=True)
class Scale:
    """What a quantity is in train: mean and standard deviation, and its levels in order; () where it has none."""

    mean: float
    std: float
    levels: tuple[float, ...] = ()


@dataclass(frozen=True)
class TargetRow:
    """How one quantity fared, in its units.

    `r2` is 0 where all true values are one (1 if they are met). Of a quantity of levels, `kappa` (Cohen's, weighted
    linearly) and `mae_levels` compare the nearest level of what is predicted with that of the truth; None for others.
    """

    name: str
    count: int
    mae: float
    rmse: float
    r2: float
    kappa: float | None = None
    mae_levels: float | None = None


@dataclass(frozen=True)
class TargetEvaluation:
    """The result of `Regress.evaluate`."""

    metrics: dict[str, float]  # means over the quantities, and the loss
    table: tuple[TargetRow, ...]
    predicted: Tensor  # (n, K) double, in units of the data
    true: Tensor  # (n, K)


class Regress(WholeImageLearner[TargetEvaluation]):
    """Regression to one or several quantities, standardised by their mean and deviation in train.

    The loss is smooth L1 of the standardised values: squares within a deviation, so that means are learnt, and beyond
    it linear, so that a few wrong values do not decide.

    Args:
        classes: what the K quantities are called.
        scales: mean, deviation and levels of each.
    """

    selection = "standardised_mae"
    higher_is_better = False

    def __init__(self, classes: Sequence[str], scales: Sequence[Scale]) -> None:
        self.classes, self.scales = tuple(classes), tuple(scales)
        self.mean, self.std = (torch.tensor([getattr(s, name) for s in scales]) for name in ("mean", "std"))

    def cost(self, logits: Tensor, targets: DeviceBatch) -> Tensor:
        self.mean, self.std = self.mean.to(logits.device), self.std.to(logits.device)
        standard = ((targets["target"] - self.mean) / self.std).to(logits.dtype)
        return part_of_mean(F.smooth_l1_loss(logits, standard), len(logits))

    def evaluate(self, model: nn.Module, batches: DeviceBatches) -> TargetEvaluation:
        """Return the metrics over all batches. The model is left in eval mode.

        Raises:
            UserError: there is no batch.
        """
        logits, targets = self.outputs(model, batches)
        found, true = self.numbers(logits), targets.double()
        columns = zip(self.classes, found.T, true.T, self.scales, strict=True)
        table = tuple(_row(name, told, right, scale) for name, told, right, scale in columns)
        standard = (true - self.mean.cpu()) / self.std.cpu()
        metrics = {
            "standardised_mae": (logits - standard).abs().mean().item(),
            **{name: _mean([getattr(row, name) for row in table]) for name in ("mae", "rmse", "r2")},
            "loss": F.smooth_l1_loss(logits.double(), standard).item(),
        }
        return TargetEvaluation(metrics, table, found, true)

    def kept(self, evaluation: TargetEvaluation) -> dict[str, Tensor]:
        """Return predicted and true values, (n, K) each, in units of the data."""
        if evaluation.predicted.numel() > KEPT:
            return {}
        return {"predicted": evaluation.predicted, "true": evaluation.true}

    def report(self, evaluation: TargetEvaluation) -> dict[str, Any]:
        """Return the table, as JSON holds it."""
        return {"targets": [asdict(row) for row in evaluation.table]}

    def details(self, evaluation: TargetEvaluation) -> dict[str, Any]:
        """Return the table: the metrics are means over quantities that may have different units."""
        return self.report(evaluation)

    def table(self, evaluation: TargetEvaluation) -> RenderableType:
        return targets_table([asdict(row) for row in evaluation.table])

    def figures(self, evaluation: TargetEvaluation) -> dict[str, Callable[[Path], object]]:
        return {"scatter": partial(scatter_figure, evaluation.predicted, evaluation.true, self.classes)}

    def numbers(self, logits: Tensor) -> Tensor:
        """Return quantities (b, K) in units of the data, in double."""
        return logits.cpu().double() * self.std.cpu() + self.mean.cpu()

    def prediction(self, name: str, numbers: list[float]) -> Prediction:
        return Prediction({"image": name, "values": dict(zip(self.classes, numbers, strict=True))})

    def prediction_table(self, rows: Sequence[Mapping[str, Any]]) -> RenderableType:
        return values_table(rows, self.classes)

    def csv_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns image, and `value:NAME` for each quantity."""
        return {"image": row["image"]} | {f"value:{name}": value for name, value in row["values"].items()}


def scales_of(classes: Sequence[str], targets: Tensor) -> list[Scale]:
    """Return the scales of quantities (n, K), float32.

    Raises:
        UserError: a quantity is the same in all images, or its differences are too small beside its size for fp32.
    """
    scales = []
    for name, values in zip(classes, targets.double().T, strict=True):
        std = values.std(correction=0).item()
        if std == 0:
            raise UserError(f"{name} is {values[0]:g} in all training images, so there is nothing to learn")
        if std < 1e-4 * values.abs().max():
            raise UserError(f"the values of {name} differ by little of their size; subtract a constant from all")
        levels = values.unique().tolist()
        few = len(levels) <= min(MOST_LEVELS, len(values) // IMAGES_PER_LEVEL)
        scales.append(Scale(values.mean().item(), std, tuple(levels) if few else ()))
    return scales


def _row(name: str, found: Tensor, true: Tensor, scale: Scale) -> TargetRow:
    twice = found.repeat(2), true.repeat(2)  # one value alone, for which R2 is asked too, has no variance either
    return TargetRow(
        name,
        len(true),
        mean_absolute_error(found, true).item(),
        mean_squared_error(found, true, squared=False).item(),
        r2_score(*twice).item(),
        *(_of_levels(found, true, scale.levels) if scale.levels else ()),
    )


def _of_levels(found: Tensor, true: Tensor, levels: Sequence[float]) -> tuple[float | None, float]:
    """Return kappa, None where it is not defined, and the mean distance, of the nearest levels."""
    known = torch.tensor(levels, dtype=torch.float64)
    told, right = ((values[:, None] - known).abs().argmin(1) for values in (found, true))
    kappa = multiclass_cohen_kappa(told, right, num_classes=len(levels), weights="linear").item()
    return (kappa if kappa == kappa else None), (told - right).abs().double().mean().item()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
