"""Image classification: loss, metrics and predictions.

A batch is {"image": (b, 3, s, s), "label": (b,) int64}, on the model's device; K is the number of classes.
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
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchvision.transforms import v2

from snella.distributed.evaluation import all_parts
from snella.distributed.part import own_rows, whole
from snella.errors import UserError
from snella.report.figures import confusion_figure
from snella.tasks.classification.class_rows import ClassRow, class_rows, class_table, prediction_table
from snella.tasks.interface import KEPT, Prediction
from snella.tasks.whole_image import WholeImageLearner
from snella.training.interfaces import DeviceBatch, DeviceBatches


@dataclass(frozen=True)
class ClassEvaluation:
    """The result of `Classify.evaluate`."""

    metrics: dict[str, float]  # top1, top5, balanced_accuracy: fractions from 0 to 1; loss: nats per example
    table: tuple[ClassRow, ...]  # a row per class, in the order of the labels
    confusion: Tensor  # (K, K) int64 on the CPU: true class x predicted class
    logits: Tensor | None = None  # (n, K) fp32 on the CPU; None: more numbers than are kept
    labels: Tensor | None = None  # (n,) int64 on the CPU


class Classify(WholeImageLearner[ClassEvaluation]):
    """Classification into the named classes, one per image.

    Args:
        classes: the K names, in the order of the labels.
        class_weights: (K,) weights of the classes in the training loss; None: all 1.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        mixup, cutmix: alpha of the Beta distribution the mixing ratio is drawn from; 0: off. Where both are on, each
            batch gets one of the two, at even odds. Draws come from torch's global generator.

    Raises:
        UserError: fewer than two classes, or a value outside its range.

    Example:
        >>> task = Classify(("sound", "cracked"))
        >>> task.answers(model, images).shape
        torch.Size([8, 2])
    """

    selection = "top1"
    higher_is_better = True

    def __init__(
        self,
        classes: Sequence[str],
        *,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ) -> None:
        if len(classes) < 2:
            raise UserError(f"{len(classes)} class to tell apart: give images of at least two classes")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing {label_smoothing} is outside [0, 1): 0.1 is usual, 0 is off")
        for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if alpha < 0:
                raise UserError(f"{name} {alpha} is negative: it is the alpha of a Beta distribution; 0 is off")
        if class_weights is not None and class_weights.shape != (len(classes),):
            raise UserError(f"{class_weights.numel()} class weights for {len(classes)} classes: give one per class")
        self.classes = tuple(classes)
        self.class_weights = torch.ones(len(classes)) if class_weights is None else class_weights.float()
        self.label_smoothing = label_smoothing
        mixes: list[nn.Module] = []
        if mixup:
            mixes.append(v2.MixUp(alpha=mixup, num_classes=len(classes)))
        if cutmix:
            mixes.append(v2.CutMix(alpha=cutmix, num_classes=len(classes)))
        self.mix = v2.RandomChoice(mixes) if mixes else None
        self.mixes = bool(mixes)

    def mixed(self, batch: DeviceBatch) -> DeviceBatch:
        """Return the batch, with images and labels mixed where that is on: labels (b, K), whose rows sum to 1."""
        if self.mix is None:
            return batch
        images, labels = self.mix(batch["image"], batch["label"])
        return {"image": own_rows(images), "label": own_rows(labels)}

    def cost(self, logits: Tensor, targets: DeviceBatch) -> Tensor:
        """Return the cross-entropy (0-d), averaged with the class weights of the targets."""
        labels: Tensor = targets["label"]
        weights = self.class_weights = self.class_weights.to(logits)
        total = F.cross_entropy(logits, labels, weight=weights, label_smoothing=self.label_smoothing, reduction="sum")
        # reduction="mean" divides by the weights for labels but by b for mixed targets: one scale for both here
        return total / whole((labels @ weights if labels.is_floating_point() else weights[labels]).sum())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: DeviceBatches) -> ClassEvaluation:
        """Return the metrics over all batches, without mixing, smoothing or weights. The model is left in eval mode.

        Balanced accuracy is the mean recall over the classes that have examples; top5 is top-K where K < 5.

        Raises:
            UserError: there is no batch.
        """
        model.eval()
        count = len(self.classes)
        confusion = MulticlassConfusionMatrix(count, sync_on_compute=False)
        top5 = MulticlassAccuracy(count, top_k=min(5, count), average="micro", sync_on_compute=False)
        # else an image beyond what the model can do would be left out
        loss = MeanMetric(nan_strategy="disable", sync_on_compute=False)
        outputs: list[tuple[Tensor, Tensor]] = []
        images = 0
        for batch in batches:
            labels = batch["label"]
            logits = self.logits(model, batch["image"])
            for metric in (confusion, top5, loss):
                metric.to(logits.device)
            confusion.update(logits, labels)
            top5.update(logits, labels)
            loss.update(F.cross_entropy(logits, labels, reduction="none"))
            images += len(labels)
            if images * count <= KEPT:
                outputs.append((logits.cpu(), labels.cpu()))
            else:
                outputs.clear()
        (confusion, top5, loss), outputs = merged((confusion, top5, loss), outputs, images * count <= KEPT)
        matrix = confusion.compute().cpu().long()
        table = class_rows(self.classes, matrix)
        recalls = [row.recall for row in table if row.recall is not None]
        metrics = {
            "top1": matrix.diagonal().sum().item() / matrix.sum().item(),
            "top5": top5.compute().item(),
            "balanced_accuracy": sum(recalls) / len(recalls),
            "loss": loss.compute().item(),
        }
        logits, labels = map(torch.cat, zip(*outputs, strict=True)) if outputs else (None, None)
        return ClassEvaluation(metrics, table, matrix, logits, labels)

    def kept(self, evaluation: ClassEvaluation) -> dict[str, Tensor]:
        """Return logits (n, K) and labels (n,)."""
        if evaluation.logits is None or evaluation.labels is None:
            return {}
        return {"logits": evaluation.logits, "labels": evaluation.labels}

    def report(self, evaluation: ClassEvaluation) -> dict[str, Any]:
        """Return the table and the confusion matrix, as JSON holds them."""
        return {"classes": [asdict(row) for row in evaluation.table], "confusion": evaluation.confusion.tolist()}

    def doubts(self, evaluation: ClassEvaluation) -> list[str]:
        """Return a line where no more images are right than if all were told the most frequent class."""
        counts = evaluation.confusion.sum(1)
        share = counts.max().item() / counts.sum().item()
        if evaluation.metrics["top1"] > share:
            return []
        name = self.classes[int(counts.argmax())]
        return [
            f"nothing was learnt: val top-1 is {evaluation.metrics['top1']:.1%}, and {share:.1%} of val are {name}; "
            "train again with a lower --lr, or more --epochs"
        ]

    def table(self, evaluation: ClassEvaluation) -> RenderableType:
        return class_table(evaluation.table)

    def figures(self, evaluation: ClassEvaluation) -> dict[str, Callable[[Path], object]]:
        return {"confusion": partial(confusion_figure, evaluation.confusion, self.classes)}

    def numbers(self, logits: Tensor) -> Tensor:
        """Return probabilities (b, K)."""
        return logits.softmax(dim=-1)

    def prediction(self, name: str, numbers: list[float]) -> Prediction:
        best = max(range(len(self.classes)), key=numbers.__getitem__)
        row = {"image": name, "class": self.classes[best], "probability": numbers[best]}
        return Prediction({**row, "probabilities": dict(zip(self.classes, numbers, strict=True))})

    def prediction_table(self, rows: Sequence[Mapping[str, Any]]) -> RenderableType:
        return prediction_table(rows)

    def csv_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns image, class, probability, and `probability:NAME` for each class."""
        found = {name: row[name] for name in ("image", "class", "probability")}
        return found | {f"probability:{name}": share for name, share in row["probabilities"].items()}


def merged(metrics: Sequence[Any], outputs: list[Any], whole: bool) -> tuple[Sequence[Any], list[Any]]:
    """Return metrics and outputs of what all processes have seen; where one has seen all, the same ones.

    `whole` says whether `outputs` has all that this process has seen; unless all have, none is returned.

    Raises:
        UserError: nobody has seen anything.
    """
    found = all_parts((metrics, outputs, whole))
    parts = [part for part, *_ in found if part[0].update_called]
    if not parts:
        raise UserError("nothing to evaluate: the split has no image; give --data with at least one")
    first, *others = parts
    for other in others:
        for metric, more in zip(first, other, strict=True):
            metric.merge_state(more)
    return first, [pair for _, pairs, _ in found for pair in pairs] if all(kept for *_, kept in found) else []
