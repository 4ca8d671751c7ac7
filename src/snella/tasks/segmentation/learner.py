"""Semantic segmentation: loss, metrics and predictions.

A training batch is {"image": (b, 3, s, s), "mask": (b, s, s) int64}; to evaluate, images are of any size and masks as
the files have them, in lists where sizes differ. K is the number of classes; IGNORE in a mask stands for none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial, reduce
from importlib.util import find_spec
from itertools import chain
from operator import add
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import RenderableType
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from snella.data.dataset import Transform
from snella.data.images import UnreadableImage
from snella.data.loading import transformed
from snella.data.masks.files import IGNORE, RGB, MaskCode, MaskData, MaskedImages, mask_picture
from snella.data.transforms.images import Preprocessing
from snella.distributed.evaluation import all_parts
from snella.distributed.part import current_part, equal_share, summed_over_parts, whole
from snella.errors import UserError
from snella.report.figures import confusion_figure
from snella.tasks.interface import KEPT, Prediction, TaskLearner, check_finite
from snella.tasks.segmentation.overlays import Example, overlays_figure, painted
from snella.tasks.segmentation.regions import RegionRow, area_table, mean_share, region_rows, region_table
from snella.tasks.segmentation.windows import windowed_logits
from snella.training.interfaces import DeviceBatch, DeviceBatches

EXAMPLES = 4  # images of an evaluation that its figure shows


@dataclass(frozen=True)
class RegionEvaluation:
    """The result of `Segment.evaluate`."""

    metrics: dict[str, float]  # miou, mdice, pixel_accuracy: fractions from 0 to 1; loss: nats per pixel
    table: tuple[RegionRow, ...]  # a row per class
    confusion: Tensor  # (K, K) int64 on the CPU: true class x predicted class, in pixels
    examples: tuple[Example, ...]  # a few images with both masks
    worst: tuple[Example, ...]  # those with the largest share of wrong pixels, the worst first
    counts: Tensor  # (n, 3, K) int64 on the CPU: of each image the pixels of each class that are met, true, predicted


class Segment(TaskLearner[RegionEvaluation, MaskData, MaskedImages]):
    """One of the named classes for each pixel.

    Args:
        classes: the K names.
        preprocessing: of the images; its size is the model's window, its normalisation is undone for figures.
        code: how mask files say classes; predicted masks say them alike.
        palette: the classes' colours.
        loss: "ce", "dice" or "ce+dice", their sum. Dice is soft, over the batch, of the classes that it has.
        class_weights: (K,) weights in the cross-entropy; None: all 1.
        label_smoothing: share of the cross-entropy's target spread over all classes, in [0, 1).

    Raises:
        UserError: fewer than two classes, or Dice without the package that has it.

    Example:
        >>> task = Segment(("background", "cell"), preprocessing=Preprocessing(224), code=code, palette=palette)
        >>> task.loss(model, {"image": images, "mask": masks}).shape
        torch.Size([])
    """

    selection = "miou"
    higher_is_better = True

    def __init__(
        self,
        classes: Sequence[str],
        *,
        preprocessing: Preprocessing,
        code: MaskCode,
        palette: Sequence[RGB],
        loss: str = "ce",
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        if len(classes) < 2:
            raise UserError(f"{len(classes)} class to tell apart: give masks with at least two classes")
        self.classes = tuple(classes)
        self.preprocessing, self.code, self.palette = preprocessing, code, tuple(palette)
        self.class_weights = torch.ones(len(classes)) if class_weights is None else class_weights.float()
        self.label_smoothing = label_smoothing
        parts = loss.split("+")
        self.cross_entropy, self.dice = "ce" in parts, dice_loss() if "dice" in parts else None

    def loss(self, model: nn.Module, batch: DeviceBatch) -> Tensor:
        """Return the training loss (0-d) in fp32; of a batch without a pixel that counts it is 0.

        Raises:
            UserError: one image alone, for a decoder with a batch norm over whole images.
        """
        masks = batch["mask"]  # (b, s, s)
        try:
            logits = model(batch["image"]).float()  # (b, K, s, s)
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                raise UserError("one image a batch is too little for the decoder; use --batch-size 2 or more") from None
            raise
        total = logits.sum() * 0
        if self.cross_entropy:
            total = total + self._cross_entropy(logits, masks)
        if self.dice is not None:
            total = total + (self.dice if current_part() is None else whole_dice)(logits, masks)
        return total

    def _cross_entropy(self, logits: Tensor, masks: Tensor) -> Tensor:
        weights = self.class_weights = self.class_weights.to(logits.device)
        total = F.cross_entropy(
            logits, masks, weight=weights, ignore_index=IGNORE, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return total / whole(weights[masks[masks != IGNORE]].sum()).clamp(min=1e-12)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: DeviceBatches) -> RegionEvaluation:
        """Return the metrics over all pixels, at the masks' own resolution. The model is left in eval mode.

        mIoU and mDice are means over the classes that are there or predicted. Of two classes the second one is the
        foreground, whose IoU and Dice are metrics too.

        Raises:
            UserError: there is no batch.
        """
        model.eval()
        confusion = MulticlassConfusionMatrix(
            len(self.classes), ignore_index=IGNORE, validate_args=False, sync_on_compute=False
        )
        loss, counted = 0.0, 0
        examples: list[Example] = []
        worst: list[tuple[float, Example]] = []
        counts: list[Tensor] = []
        shown = spread(len(batches), EXAMPLES)
        for number, batch in enumerate(batches):
            images, masks = batch["image"], batch["mask"]
            for i, (found, image, mask) in enumerate(zip(self._logits(model, images), images, masks, strict=True)):
                logits = _resized(found, mask.shape)  # (1, K, H, W)
                predicted = logits.argmax(dim=1)  # (1, H, W)
                confusion.to(logits.device).update(predicted, mask[None])
                counts.append(_pixel_counts(mask, predicted[0], len(self.classes)).cpu())
                wrong = _wrong_share(counts[-1])
                if len(worst) < EXAMPLES or wrong > worst[-1][0]:
                    worst.append((wrong, self._example(image, mask, predicted[0])))
                    worst = sorted(worst, key=lambda pair: -pair[0])[:EXAMPLES]
                loss += F.cross_entropy(logits, mask[None], ignore_index=IGNORE, reduction="sum").item()
                counted += int((mask != IGNORE).sum())
                if i == 0 and number in shown:
                    examples.append(self._example(image, mask, predicted[0]))
        sums, lists = merged((confusion.compute().cpu().long(), loss, counted), (examples, worst, counts))
        (matrix, loss, counted), (examples, worst, counts) = sums, lists
        examples = [examples[i] for i in sorted(spread(len(examples), EXAMPLES))]
        worst = sorted(worst, key=lambda pair: -pair[0])[:EXAMPLES]
        if not counted:
            raise UserError("nothing to evaluate: no pixel of the split's masks counts; give --data with at least one")
        table = region_rows(self.classes, matrix)
        return RegionEvaluation(
            _metrics(table, matrix, loss / counted),
            table,
            matrix,
            tuple(examples),
            tuple(example for _, example in worst),
            torch.stack(counts),
        )

    def kept(self, evaluation: RegionEvaluation) -> dict[str, Tensor]:
        """Return the pixels of each image and class that are met, true and predicted, (n, 3, K)."""
        return {"counts": evaluation.counts} if evaluation.counts.numel() <= KEPT else {}

    def _logits(self, model: nn.Module, images: Sequence[Tensor]) -> Iterator[Tensor]:
        return windowed_logits(model, images, self.preprocessing.image_size, batch_size=len(images))

    def _example(self, image: Tensor, mask: Tensor, predicted: Tensor) -> Example:
        p = self.preprocessing
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (p.mean, p.std))
        pixels = (image.flip(0) if p.bgr else image).cpu() * std + mean
        pixels = F.interpolate(pixels[None], size=tuple(mask.shape), mode="bilinear", align_corners=False)[0]
        picture = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        return Example(picture, mask.cpu().numpy(), predicted.cpu().numpy())

    def report(self, evaluation: RegionEvaluation) -> dict[str, Any]:
        """Return the table and the confusion matrix, as JSON holds them."""
        return {**self.details(evaluation), "confusion": evaluation.confusion.tolist()}

    def details(self, evaluation: RegionEvaluation) -> dict[str, Any]:
        return {"classes": [asdict(row) for row in evaluation.table]}

    def table(self, evaluation: RegionEvaluation) -> RenderableType:
        return region_table(evaluation.table)

    def figures(self, evaluation: RegionEvaluation) -> dict[str, Callable[[Path], object]]:
        return {
            "overlays": partial(overlays_figure, evaluation.examples, self.classes, self.palette),
            "worst": partial(overlays_figure, evaluation.worst, self.classes, self.palette, title="Where it is worst"),
            "confusion": partial(confusion_figure, evaluation.confusion, self.classes, unit="pixels"),
        }

    @torch.no_grad()
    def predict(
        self, model: nn.Module, images: MaskedImages, transform: Transform, *, batch_size: int
    ) -> Iterator[Prediction | UnreadableImage]:
        """Yield, in order of the images, areas and pictures, or why there are none. The model is left in eval mode."""
        model.eval()
        device = next(model.parameters()).device
        names = iter(images.paths)
        for examples in transformed(images, transform, batch_size):
            pixels = [e["image"].to(device) for e in examples if not isinstance(e, UnreadableImage)]
            found = self._logits(model, pixels)
            for example in examples:
                name = next(names)
                if isinstance(example, UnreadableImage):
                    yield example
                    continue
                picture = images.read(name)  # once more: those of a batch might not fit the memory
                logits = next(found)
                check_finite(name, float(logits.sum()))
                classes = enlarged_classes(logits, (picture.height, picture.width))
                yield self._prediction(name, picture, classes.cpu())

    def _prediction(self, name: str, picture: Image.Image, mask: Tensor) -> Prediction:
        counts = torch.bincount(mask.flatten(), minlength=len(self.classes)).tolist()
        areas = {
            class_name: {"pixels": count, "share": count / mask.numel()}
            for class_name, count in zip(self.classes, counts, strict=True)
        }
        pictures = {
            "mask": mask_picture(mask, self.code, self.palette),
            "overlay": Image.fromarray(painted(picture, mask.numpy(), self.palette)),
        }
        return Prediction({"image": name, "width": picture.width, "height": picture.height, "areas": areas}, pictures)

    def prediction_table(self, rows: Sequence[Mapping[str, Any]]) -> RenderableType:
        return area_table(rows)

    def csv_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns image, width, height, the pictures' files, and `pixels:NAME` for each class."""
        areas = {f"pixels:{name}": area["pixels"] for name, area in row["areas"].items()}
        return {name: value for name, value in row.items() if name != "areas"} | areas


def _pixel_counts(mask: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Return how many pixels of each class are met, true and predicted, (3, K), of two masks (H, W)."""
    counted = mask != IGNORE
    true, found = mask[counted], predicted[counted]
    return torch.stack([torch.bincount(x, minlength=classes) for x in (true[true == found], true, found)])


def _wrong_share(counts: Tensor) -> float:
    """Return the share of wrong pixels, from what `_pixel_counts` gives of an image; 0 where none counts."""
    met, true, _ = counts.sum(1).tolist()
    return 1 - met / true if true else 0.0


def _resized(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return logits (K, h, w) at another size: (1, K, *size)."""
    return F.interpolate(logits[None], size=tuple(size), mode="bilinear", align_corners=False)


def enlarged_classes(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return the most likely class of each pixel of logits (K, h, w) at another size, (H, W) int16.

    That is `_resized(logits, size)[0].argmax(0)`, a class at a time: K maps of a large image need not fit the memory.
    """
    best = _resized(logits[:1], size)[0, 0]
    classes = torch.zeros(tuple(size), dtype=torch.int16, device=logits.device)
    for k in range(1, len(logits)):
        other = _resized(logits[k : k + 1], size)[0, 0]
        classes.masked_fill_(other > best, k)
        torch.maximum(best, other, out=best)
    return classes


def spread(length: int, count: int) -> set[int]:
    """Return up to `count` positions, spread evenly over `length`."""
    return {(2 * i + 1) * length // (2 * count) for i in range(count)}


def _metrics(table: Sequence[RegionRow], matrix: Tensor, loss: float) -> dict[str, float]:
    metrics = {
        "miou": mean_share(row.iou for row in table),
        "mdice": mean_share(row.dice for row in table),
        "pixel_accuracy": matrix.diagonal().sum().item() / matrix.sum().item(),
        "loss": loss,
    }
    if len(table) == 2:
        metrics |= {"foreground_iou": table[1].iou or 0.0, "foreground_dice": table[1].dice or 0.0}
    return metrics


def merged(sums: Sequence[Any], lists: Sequence[list[Any]]) -> tuple[list[Any], list[list[Any]]]:
    """Return sums and lists of what all processes have seen."""
    summed, joined = zip(*all_parts((sums, lists)), strict=True)
    first = [reduce(add, values) for values in zip(*summed, strict=True)]
    return first, [list(chain.from_iterable(values)) for values in zip(*joined, strict=True)]


def whole_dice(logits: Tensor, masks: Tensor) -> Tensor:
    """Return this process's share of the soft Dice loss (0-d) of a batch of which each has a part.

    It is 1 - 2 |p t| / (|p| + |t|) of each class, p its probabilities and t its pixels of the whole batch, 0 where
    t is empty; the mean over the classes. `dice_loss` is the same for a batch that is in one place.
    """
    seen = (masks != IGNORE)[:, None]
    p = logits.softmax(1) * seen  # (b, K, s, s)
    t = F.one_hot(masks.where(seen[:, 0], 0), logits.shape[1]).movedim(-1, 1).to(p) * seen
    axes = (0, 2, 3)
    both, found, there = summed_over_parts(torch.stack([(p * t).sum(axes), p.sum(axes), t.sum(axes)]))
    return equal_share(((1 - 2 * both / (found + there).clamp(min=1e-7)) * (there > 0)).mean())


def dice_loss() -> nn.Module:
    """Return the soft Dice loss. Raises UserError where the package is missing that has it."""
    if find_spec("segmentation_models_pytorch") is None:
        raise UserError("--loss dice needs the package segmentation-models-pytorch; run: pip install 'snella[segment]'")
    from segmentation_models_pytorch.losses import DiceLoss

    return DiceLoss("multiclass", ignore_index=IGNORE)
